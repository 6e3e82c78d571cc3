"""Faults of operations that come at an awkward moment, or to no effect."""

from .base import Fault, zfs_tests

FAULTS = (
    Fault(
        "an operation does not wait for a stop in progress",
        "driver/halting.py",
        "return self.is_running() and has_ended(self._owner)",
        "return False",
        zfs_tests("operations", "operations_wait_for_a_stop_in_progress"),
    ),
    Fault(
        "a running qube is waited for",
        "driver/halting.py",
        'frozenset({"Halted", "Dying"})',
        'frozenset({"Halted", "Dying", "Running"})',
        zfs_tests("operations", "a_running_qube_is_not_waited_for"),
    ),
    Fault(
        "each operation waits for a stop that never comes",
        "driver/halting.py",
        "            self._awaited_in_vain = True\n",
        "",
        ("tests/unit/test_halting.py::test_a_vain_wait_is_not_repeated",),
    ),
    Fault(
        "a qube that is starting is reverted",
        "driver/halting.py",
        "if self.is_running() or self._is_starting():",
        "if self.is_running():",
        zfs_tests("operations", "a_qube_that_is_starting_is_not_reverted"),
    ),
    Fault(
        "the size of a source is set at its clone, to no effect",
        "driver/volume.py",
        "if self.source is not None and not self._in_use():",
        "if False:",
        zfs_tests("operations", "a_size_that_is_the_sources_is_refused"),
    ),
    Fault(
        "clearing after an import that died is refused",
        "driver/transfer.py",
        "return self._import_replaces and task is not asyncio.current_task()",
        "return self._import_replaces",
        zfs_tests("operations", "operations_after_an_import_that_died"),
    ),
)
