"""Faults of qvm-zfs: what it believes of a disk, and what it prints."""

from .base import LUA, Fault, zfs_tests

_CLAIMS = zfs_tests("marks", "a_name_that_two_datasets_claim")
_ALL = zfs_tests("marks", "lock_all_locks_what_it_can")
_PRINTED = zfs_tests("marks", "no_control_character_is_printed")
_EVIL = zfs_tests("adopt", "undo_takes_nothing_else_from_a_disk")
_ODD = "odd_names"

FAULTS = (
    Fault(
        "undoing takes attributes of qubes.xml from the disk",
        "tools/adopt.py",
        "        record.dropped if record is not None else {},\n",
        "        {\n"
        "            qube.short_name: __import__('json').loads(\n"
        "                qube.own[naming.ADOPTED]\n"
        "            )\n"
        "            for qube in disk.moved\n"
        "        },\n",
        zfs_tests("adopt", "attributes_come_from_dom0"),
    ),
    Fault(
        "undoing sets a property that is not in the table",
        "migrate/records.py",
        "        if before not in SETTINGS.get(name, ()):\n",
        "        if False:\n",
        _EVIL,
    ),
    Fault(
        "a record of a qube that adopting does not write is accepted",
        "migrate/undo.py",
        "    plan.refused.extend(map(str, records.unexpected(disk)))\n",
        "",
        _EVIL,
    ),
    Fault(
        "undoing sets what dom0 did not record",
        "migrate/records.py",
        "            and in_dom0.settings in (None, on_disk.settings)\n",
        "",
        (
            "tests/unit/test_adopt_plan.py"
            "::test_records_of_another_adoption_are_refused",
        ),
    ),
    Fault(
        "undoing believes that the zpool is the one that was adopted",
        "migrate/records.py",
        "            and in_dom0.zpool_guid in (None, imported)\n",
        "",
        (
            "tests/unit/test_adopt_plan.py"
            "::test_records_of_another_adoption_are_refused",
        ),
    ),
    Fault(
        "a name that two disks claim is used",
        "tools/pools.py",
        "        if len(chosen) > 1:\n",
        "        if False:\n",
        _CLAIMS,
    ),
    Fault(
        "a mark counts as much as qubes.xml",
        "tools/pools.py",
        "[pool for pool in claims if pool.is_configured] or claims",
        "claims",
        _CLAIMS,
    ),
    Fault(
        "a zpool is told by its name",
        "tools/pools.py",
        "        check_zpool(chosen[0])\n",
        "",
        _CLAIMS,
    ),
    Fault(
        "a passphrase is asked for another pool's dataset",
        "tools/pools.py",
        "    if secret and claim is not None:\n",
        "    if False:\n",
        _CLAIMS,
    ),
    Fault(
        "locking all ends at the first failure",
        "tools/lock.py",
        "    except (Failed, OSError) as exc:\n",
        "    except EOFError as exc:\n",
        _ALL,
    ),
    Fault(
        "what only a disk claims to be a pool stays unlocked",
        "tools/lock.py",
        "for mark in pools.strange_roots()]\n",
        "for mark in ()]\n",
        _ALL,
    ),
    Fault(
        "control characters are printed",
        "tools/output.py",
        "    line = printable(text)\n",
        "    line = text\n",
        _PRINTED,
    ),
    Fault(
        "control characters of the command line are printed",
        "tools/output.py",
        "        super().error(printable(message))\n",
        "        super().error(message)\n",
        (
            "tests/unit/test_tools.py"
            "::test_a_command_line_is_not_printed_as_it_is",
        ),
    ),
    Fault(
        "a symlink is followed when qubes.xml is copied",
        "migrate/files.py",
        "os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW |",
        "os.O_CREAT |",
        ("tests/unit/test_qubes_xml.py::test_no_symlink_is_followed",),
    ),
    Fault(
        "a name that is not UTF-8 cannot be given back to ZFS",
        "zfs/zcp.py",
        "        return text.to_disk(value)\n",
        "        return value.encode()\n",
        zfs_tests(_ODD, "text_of_a_disk_goes_back_to_it"),
    ),
    Fault(
        "a log line has what a terminal obeys",
        "zfs/lzc.py",
        "LOG.addFilter(text.printable_record)\n",
        "",
        zfs_tests(_ODD, "a_log_line_is_printable"),
    ),
    Fault(
        "a blank volume of another name is taken for garbage",
        LUA + "garbage.lua",
        "        if number ~= current and is_volume_name(volume) then\n",
        "        if number ~= current then\n",
        zfs_tests(_ODD, "strangers_beside_ours_stay"),
    ),
)
