-- SPDX-License-Identifier: BSD-2-Clause
-- Remove a volume: its pointer, its revisions and its generations.
--
-- argv:
--   qube             string   dataset of the qube
--   volume           string   name of the volume
--   pointer          string   property of the qube's dataset: the pointer
--   committed        string   property: the committed state
--   prefix           string   of pointers
--   holder           string   property: the holder mark
--   busy             table    whose keys are generations that an export uses;
--                             they are left to the end of the export
--   only_disposable  boolean  do nothing unless the volume is disposable
--   retry            boolean  the pointer was removed before.  If there is one,
--                             a new volume has the name; do nothing
-- Returns:
--   busy       string: a generation that a process has open; absent if none
--   unfreed    string: a generation that a clone needs and that could not be
--              rolled back, because a process has it open; absent if none
--   bookmarks  list: bookmarks that must be destroyed before the rest can be
--   origins    list: datasets that garbage.lua must check
--
-- One transaction group.  A generation that cannot be destroyed now has no
-- pointer afterwards, and none of its revisions can be listed or reverted to.
-- A generation that only one clone needs is destroyed, see lib/promotion.lua.
-- If several clones, a hold or an administrator's snapshot need a generation,
-- it is rolled back to free all but its snapshots.  If qubesd is killed,
-- generations may remain as garbage.

-- Return the snapshots of this driver in a generation, committed states and
-- temporary ones, that can still be dropped.
local function snapshots_of_ours(ds)
    local list = {}
    for snapshot in zfs.list.snapshots(ds) do
        if string.match(snapshot, "@[rx][1-9]%d*$") ~= nil
            and not is_deferred(snapshot) then
            list[#list + 1] = snapshot
        end
    end
    return list
end

local qube, volume = argv.qube, argv.volume
local out = {origins = {}, bookmarks = {}}
local emptied = {}
if not zfs.exists(qube) then
    return out
end
local current, disposable = current_number(qube, argv.pointer)
if argv.only_disposable and not disposable and current ~= nil then
    return out
end
if argv.retry and current ~= nil then
    return out
end
-- A first part of these changes is harmless: the volume exists with fewer
-- revisions.  stop() commits it again, and the next removal continues.  The
-- pointer is removed last: without it, no collection would find the revisions
-- that remain.
local pointed = own_property(qube, argv.pointer) ~= nil
if pointed then
    local errno = zfs.check.inherit(qube, argv.pointer)
    if errno ~= 0 then
        return refuse(errno, "check inherit", qube)
    end
end
local changes = {}
local busy = argv.busy or {}
local removable = {}
for _, number in ipairs(generations_at_first(qube, volume)) do
    local ds = generation_name(qube, volume, number)
    if not busy[ds] and zfs.exists(ds) and (number == current
        or own_property(ds, argv.holder) ~= nil) then
        removable[#removable + 1] = ds
        -- a disposable generation has its baseline snapshot alone
        if not disposable or number ~= current then
            for _, snapshot in ipairs(snapshots_of_ours(ds)) do
                changes[#changes + 1] = {drop_revision, snapshot}
            end
        end
    end
end
record_committed(changes, qube, argv.committed, nil)
if pointed then
    changes[#changes + 1] = {zfs.sync.inherit, qube, argv.pointer}
end
local errno = all_or_none(changes)
if errno ~= 0 then
    return refuse(errno, "remove", qube)
end
-- Generations may be clones of each other's snapshots.  So repeat this until no
-- more of them can be destroyed.
local again = true
while again do
    again = false
    for _, ds in ipairs(removable) do
        if zfs.exists(ds) then
            local origin = (zfs.get_prop(ds, "origin"))
            if destroy_unneeded(ds) == 0 then
                again = true
                emptied[#emptied + 1] = garbage_candidate(origin)
            end
        end
    end
end
for _, ds in ipairs(removable) do
    if zfs.exists(ds) then
        local bookmarks = bookmarks_of(ds)
        for _, bookmark in ipairs(bookmarks) do
            out.bookmarks[#out.bookmarks + 1] = bookmark
        end
        if not has_snapshots(ds) then
            out.busy = ds
        elseif #bookmarks == 0 and zfs.sync.rollback(ds) ~= 0 then
            out.unfreed = ds
        end
    end
end
for _, ds in ipairs(emptied) do
    if zfs.exists(ds) then
        out.origins[#out.origins + 1] = ds
    end
end
if is_empty_qube(qube, argv.prefix) then
    zfs.sync.destroy(qube)
end
return out
