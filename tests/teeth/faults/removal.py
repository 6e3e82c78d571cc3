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
        zfs_tests("removed_sources", "cut_off_after_the_promotion"),
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
        "store/generations.py",
        'if gone["bookmarks"]:',
        "if False:",
        zfs_tests("removed_sources", "bookmarks_of_a_removed_source"),
    ),
    Fault(
        "a removal that is tried again removes a new volume",
        LUA + "forget.lua",
        "if argv.again and current ~= nil then",
        "if false then",
        zfs_tests(
            "removed_sources",
            "a_removal_that_is_tried_again_spares_a_new_volume",
        ),
    ),
    Fault(
        "a bookmark keeps a volume from being reset",
        "store/generations.py",
        "if not await lzc.destroy_bookmarks_of(exc.dataset):",
        "if True:",
        zfs_tests("removed_sources", "bookmarks_of_what_is_discarded"),
    ),
    Fault(
        "what was prepared of a former template stays",
        "driver/session.py",
        "            self._due = True\n            await self._prepare()\n",
        "            await self._prepare()\n",
        zfs_tests("discarded", "another_template_in_the_same_pool"),
    ),
    Fault(
        "what was prepared in a former pool stays",
        "driver/events.py",
        "    _collect_discarded(qube.app)\n",
        "",
        zfs_tests("discarded", "another_template_in_another_pool"),
    ),
    Fault(
        "discarded content that no qube has stays",
        "driver/pool.py",
        "await collect_once(self, self._app)",
        "pass",
        zfs_tests("discarded", "the_next_qubesd_destroys_what_no_qube_has"),
    ),
    Fault(
        "a second set of qubes decides what no qube has",
        "driver/discarded.py",
        "return vmm is not None and not vmm.offline_mode",
        "return vmm is not None",
        zfs_tests("discarded", "who_must_not_decide"),
    ),
    Fault(
        "qubes that are not loaded yet count as gone",
        "driver/discarded.py",
        "        if qube.storage is None:\n            return None\n",
        "        if qube.storage is None:\n            continue\n",
        zfs_tests("discarded", "who_must_not_decide"),
    ),
    Fault(
        "a volume that another process works on is destroyed",
        "store/container.py",
        "return not busy and not holder.Living().is_another(mark)",
        "return not busy",
        zfs_tests("discarded", "what_another_process_works_on_stays"),
    ),
)
