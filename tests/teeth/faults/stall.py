"""Faults with a zpool that does not answer, or cannot be used as it is."""

from .base import Fault, zfs_tests

_SILENT = zfs_tests("suspended", "a_silent_zpool_holds_up_nothing_else")

FAULTS = (
    Fault(
        "all zpools share their threads",
        "zfs/threads.py",
        "if not _ZPOOL.match(zpool):",
        "if True:",
        _SILENT,
    ),
    Fault(
        "a synchronous question has no deadline",
        "zfs/threads.py",
        "concurrent.futures.wait([future], DEADLINE)",
        "concurrent.futures.wait([future], 30)",
        _SILENT,
    ),
    Fault(
        "each synchronous question waits for its own deadline",
        "zfs/threads.py",
        "if not self.answered:",
        "if False:",
        (
            "tests/unit/test_threads.py"
            "::test_an_overdue_question_is_not_asked_again",
        ),
    ),
    Fault(
        "the last answer about a volume is not used",
        "driver/volume.py",
        "if question not in self._answers:",
        "if True:",
        _SILENT,
    ),
    Fault(
        "the last answer about space is not used",
        "store/space.py",
        "            return self._last\n",
        "            return {}\n",
        _SILENT,
    ),
    Fault(
        "the last list of volumes is not used",
        "driver/pool.py",
        "found = self._listing.last",
        "found = {}",
        _SILENT,
    ),
    Fault(
        "revisions that cannot be read are reported as none",
        "driver/volume.py",
        "return Unreadable(messages.reason(exc))",
        "return {}",
        zfs_tests(
            "conditions",
            "a_zpool_that_is_imported_read_only",
            "a_zpool_that_is_suspended",
        ),
    ),
    Fault(
        "a read-only zpool has no message of its own",
        "zfs/errors.py",
        "    _errno.EROFS: ReadOnlyZpool,\n",
        "",
        zfs_tests("conditions", "a_zpool_that_is_imported_read_only"),
    ),
    Fault(
        "a suspended zpool has no message of its own",
        "zfs/errors.py",
        "    _errno.EAGAIN: Suspended,\n",
        "",
        zfs_tests("conditions", "a_zpool_that_is_suspended"),
    ),
    Fault(
        "readonly=on is not noticed at start",
        "driver/transfer.py",
        "writable=bool(self.rw)",
        "writable=False",
        zfs_tests("conditions", "readonly_is_noticed_before_anything_is_given"),
    ),
    Fault(
        "a passphrase is asked for a key that is not made from one",
        "zfs/keys.py",
        "    if wrong is not None:\n",
        "    if False:\n",
        zfs_tests("conditions", "a_key_that_is_not_a_passphrase_any_more"),
    ),
)
