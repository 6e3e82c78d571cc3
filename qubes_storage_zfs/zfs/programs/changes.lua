-- SPDX-License-Identifier: BSD-2-Clause
-- Changes of names, snapshots and properties that belong together.
--
-- argv: changes: a list of {what, dataset, name, value}:
--         rename    the snapshot dataset@name becomes dataset@value
--         set       the user property name of dataset becomes value
--         inherit   the property name of dataset is as above it again
--         snapshot  dataset (the name of a snapshot) is made
--         destroy   dataset, which must not be in use, is destroyed
--
-- One transaction group; after a crash all of it is done, or nothing.
--
-- The caller decides the order.  With a version of OpenZFS that atomicity.lua
-- does not name, a list of which only a first part is made, because the tool was
-- killed meanwhile, may have to be completed by hand: snapshots that have their
-- new names already are refused by the next plan.
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
