"""Faults of what counts as written, as empty, and of dates."""

from .base import LUA, Fault, zfs_tests

FAULTS = (
    Fault(
        "the threshold is taken from the disk",
        LUA + "common.lua",
        "return written_since(ds, snapshot) > argv.untouched",
        "return written_since(ds, snapshot) > (tonumber(string.match("
        '(zfs.get_prop(ds, "qubes-storage-zfs:blank")) or "", " (%d+)$"))'
        " or argv.untouched)",
        zfs_tests("thresholds", "a_forged_threshold_changes_nothing"),
    ),
    Fault(
        "what a blank volume takes is read from the disk",
        LUA + "common.lua",
        "    return argv.blank ~= nil\n        and",
        "    argv.blank = tonumber(string.match((zfs.get_prop(ds,"
        ' "qubes-storage-zfs:blank")) or "", "^(%d+)")) or argv.blank\n'
        "    return argv.blank ~= nil\n        and",
        zfs_tests(
            "thresholds", "create_destroys_nothing_by_a_forged_threshold"
        ),
    ),
    Fault(
        "what is discarded is rolled back only above a threshold",
        LUA + "common.lua",
        "return written_since(ds, beginning(ds)) > 0",
        "return written_since(ds, beginning(ds)) > argv.untouched",
        zfs_tests(
            "thresholds",
            "the_smallest_write_is_not_found_by_the_next_session",
        ),
    ),
    Fault(
        "what this process measured is not capped",
        "store/thresholds.py",
        '"untouched": min(blank.referenced // _SHARE, LARGEST)',
        '"untouched": blank.referenced // _SHARE',
        zfs_tests("thresholds", "what_is_committed_is_capped"),
    ),
    Fault(
        "a zpool is judged by what was measured in another one",
        "store/thresholds.py",
        "blank.guid != importexport.guid(self._zpool)",
        "not blank.guid",
        (
            "tests/unit/test_thresholds.py"
            "::test_another_zpool_of_that_name_is_measured_again",
        ),
    ),
    Fault(
        "what ZFS wrote at an import is committed",
        "driver/session.py",
        "if state.unsure and await self.store.measure_beside(self.where):",
        "if False:",
        zfs_tests("thresholds", "a_doubt_is_measured_and_no_revision"),
    ),
    Fault(
        "a volume that is given out is committed without a measurement",
        "store/generations.py",
        'if "unsure" in left:\n            await'
        " self.store.measure_beside(self.where)\n",
        'if "unsure" in left:\n',
        zfs_tests("thresholds", "a_doubt_is_measured_and_no_revision"),
    ),
    Fault(
        "the smallest change is below the threshold",
        "store/thresholds.py",
        "UNMEASURED = 4096",
        "UNMEASURED = 8192",
        (
            "tests/unit/test_thresholds.py"
            "::test_no_line_is_above_the_smallest_change",
        ),
    ),
    Fault(
        "dates of revisions decrease when the clock goes back",
        "store/dates.py",
        "found.append(creation if creation >= before else before + 1)",
        "found.append(creation)",
        zfs_tests("dates", "revisions_stay_in_order_when_the_clock_goes_back"),
    ),
    Fault(
        "an empty dataset is told by its size",
        LUA + "common.lua",
        "    return own_property(qube, CREATED) ~= nil\n        or size",
        "    return size",
        zfs_tests("empty", "no_dataset_is_left_after_an_upgrade_of_the_zpool"),
    ),
    Fault(
        "a dataset that is mounted counts as empty",
        LUA + "common.lua",
        "or size > EMPTY_MOST then",
        "then",
        zfs_tests("empty", "what_may_have_content_stays"),
    ),
    Fault(
        "an administrator's small filesystem counts as empty",
        LUA + "common.lua",
        "    return own_property(qube, CREATED) ~= nil\n        or size",
        "    return true or size",
        zfs_tests("kept", "what_somebody_put_among_the_qubes_stays"),
    ),
    Fault(
        "a small filesystem with canmount=off counts as empty",
        LUA + "common.lua",
        '    if (zfs.get_prop(qube, "canmount")) ~= "off" then\n',
        '    if (zfs.get_prop(qube, "canmount")) == "off" then\n'
        "        return true\n    else\n",
        zfs_tests("empty", "a_small_file_stays_with_canmount_off"),
    ),
)
