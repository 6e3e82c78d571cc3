"""Faults of what is left of removed qubes."""

from .base import LUA, Fault, zfs_tests

FAULTS = (
    Fault(
        "a removed source stays for its only clone",
        LUA + "promotion.lua",
        "if clone == nil or #bookmarks_of(ds) > 0 then",
        "if true then",
        zfs_tests("removed_sources", "upgrades_in_place_take_no_space"),
    ),
    Fault(
        "what a promotion moves keeps the name of a revision",
        LUA + "promotion.lua",
        "        {zfs.sync.rename_snapshot, ds,"
        ' string.match(snapshot, "@(.*)$"), name},\n',
        "",
        zfs_tests("removed_sources", "upgrades_in_place_take_no_space"),
    ),
    Fault(
        "a state of a removed qube is a revision of its clone",
        LUA + "promotion.lua",
        'name = "g" .. string.format("%d", number)',
        'name = "r" .. string.format("%d", number)',
        zfs_tests("removed_sources", "cut_off_anywhere"),
    ),
    Fault(
        "one of several clones is promoted",
        LUA + "promotion.lua",
        "        if only ~= nil then",
        "        if false then",
        zfs_tests(
            "removed_sources", "several_clones_keep_it_until_one_is_left"
        ),
    ),
    Fault(
        "a clone of somebody else's is promoted",
        LUA + "promotion.lua",
        "if only ~= nil and is_of_volume(only) then",
        "if only ~= nil then",
        zfs_tests("removed_sources", "a_clone_that_is_not_ours_is_left_alone"),
    ),
    Fault(
        "nothing is promoted when one clone is left",
        LUA + "destruction.lua",
        'and (zfs.get_prop(origin, "numclones")) == 1) then',
        "and false) then",
        zfs_tests(
            "removed_sources", "several_clones_keep_it_until_one_is_left"
        ),
    ),
    Fault(
        "what removed volumes hold is called revisions",
        LUA + "revisions.lua",
        'kind = "removed"',
        'kind = "revisions"',
        zfs_tests(
            "removed_sources", "several_clones_keep_it_until_one_is_left"
        ),
    ),
    Fault(
        "a bookmark keeps what a removed volume held",
        "generations.py",
        'if gone["bookmarks"]:',
        "if False:",
        zfs_tests("removed_sources", "bookmarks_of_a_removed_source"),
    ),
    Fault(
        "a bookmark keeps a volume from being reset",
        "generations.py",
        "if not await core.destroy_bookmarks_of(exc.dataset):",
        "if True:",
        zfs_tests("removed_sources", "bookmarks_of_what_is_discarded"),
    ),
)
