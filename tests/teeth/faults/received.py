"""Faults of what `zfs receive` brought."""

from .base import LUA, Fault, zfs_tests

_MOVES = zfs_tests("received", "a_pool_moves_to_another_zpool")

FAULTS = (
    Fault(
        "received properties are nobody's",
        LUA + "common.lua",
        "return source == ds or source == RECEIVED",
        "return source == ds",
        _MOVES,
    ),
    Fault(
        "a received pointer is ignored",
        LUA + "common.lua",
        "    if is_own(ds, source) then\n        return value, source",
        "    if source == ds then\n        return value, source",
        _MOVES,
    ),
    Fault(
        "a received owner is ignored by an addition",
        LUA + "container.lua",
        "if is_own(argv.container, source) then",
        "if source == argv.container then",
        _MOVES,
    ),
    Fault(
        "a pointer that is removed has its received value again",
        LUA + "forget.lua",
        "changes[1] = {zfs.sync.inherit, qube, argv.pointer}",
        "changes[1] = {zfs.sync.set_prop, qube, argv.pointer,\n"
        "        own_property(qube, argv.pointer)}",
        _MOVES,
    ),
    Fault(
        "a received mark names a process that has a volume in hand",
        LUA + "garbage.lua",
        'holder = received and "received" or mark,',
        "holder = mark,",
        zfs_tests("received", "marks_of_a_process_do_not_travel"),
    ),
    Fault(
        "a replica without properties is said to have lost its mark",
        LUA + "common.lua",
        'bare = bare or (zfs.get_prop(child, "type")) == "volume"',
        "bare = false",
        zfs_tests("received", "a_replica_without_properties_says_so"),
    ),
    Fault(
        "the janitor takes an unmarked clone of what is not ours",
        LUA + "garbage.lua",
        "return own_property(source, argv.holder) ~= nil\n        and",
        "return",
        zfs_tests("received", "an_unmarked_clone_of_what_is_not_ours_stays"),
    ),
)
