-- SPDX-License-Identifier: BSD-2-Clause
-- Make a list of changes of names, snapshots and properties.
--
-- argv:
--   changes  list of {kind, dataset, name, value}, all strings.  kind is one of
--     rename    rename the snapshot dataset@name to dataset@value
--     set       set the user property name of dataset to value
--     inherit   remove dataset's own value of the property name
--     snapshot  take the snapshot that dataset names
--     destroy   destroy dataset, which no process has open
-- Returns nil.
--
-- One transaction group: after a crash, all changes were made, or none.
--
-- The caller decides the order.  With a version of OpenZFS that atomicity.lua
-- does not name, killing the tool may leave a first part of the list.  An
-- administrator may have to complete it by hand, because the next plan refuses
-- snapshots that have their new names already.
local makers = {
    rename = function(item)
        local new = item.dataset .. "@" .. item.value
        if zfs.exists(new) then
            return 17
        elseif not zfs.exists(item.dataset .. "@" .. item.name) then
            return 2
        end
        return 0, {zfs.sync.rename_snapshot, item.dataset, item.name,
            item.value}
    end,
    set = function(item)
        return 0, {zfs.sync.set_prop, item.dataset, item.name, item.value}
    end,
    inherit = function(item)
        return 0, {zfs.sync.inherit, item.dataset, item.name}
    end,
    snapshot = function(item)
        return zfs.check.snapshot(item.dataset),
            {zfs.sync.snapshot, item.dataset}
    end,
    destroy = function(item)
        return (zfs.check.destroy(item.dataset)),
            {zfs.sync.destroy, item.dataset}
    end,
}

local changes = {}
while argv.changes[string.format("%d", #changes + 1)] ~= nil do
    local item = argv.changes[string.format("%d", #changes + 1)]
    local errno, change = makers[item.kind](item)
    if errno ~= 0 then
        return refuse(errno, "check " .. item.kind, item.dataset)
    end
    changes[#changes + 1] = change
end
local errno, failed = all_or_none(changes)
if errno ~= 0 then
    return refuse(errno, "changes", failed[2])
end
return nil
