-- SPDX-License-Identifier: BSD-2-Clause
-- A volume is removed: its pointer, its revisions and its generations.
--
-- argv: qube, volume, pointer, committed (properties), prefix (of pointers),
--       holder (property that marks what is ours); busy (generations in use
--       by an export, by name: left to it); discarded (leave alone a volume
--       whose content is kept); again (the pointer was dropped before: one that
--       exists is of a new volume with the same name, which is left alone)
-- gives: busy (a generation that somebody holds open, absent if none);
--       unfreed (one that is kept and could not be rolled back, because
--       somebody has it open); bookmarks (list of those that must go before
--       the rest can); origins (datasets that the janitor must look at, see
--       garbage_candidate())
--
-- One transaction group.  What cannot go is no volume's any more: no pointer
-- names it and none of its revisions can be listed or reverted to.  A
-- generation that one clone alone needs goes, see promotion.lua.  If several
-- clones, a hold or a snapshot of somebody else's keep it, what the volume held
-- beyond its cloned snapshots is freed by rolling it back.  If qubesd is
-- killed, its generations may be left, as garbage.

-- Snapshots of ours, revisions and those of take_temporary.lua, that can still be
-- dropped.
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
-- Where only a first part of these changes is made, the volume still exists with
-- fewer revisions: stop() commits it again, and its next removal goes on from
-- there.  If the pointer went first, its revisions would be left for ever.
local pointed = own_property(qube, argv.pointer) ~= nil
if pointed then
    local errno = zfs.check.inherit(qube, argv.pointer)
    if errno ~= 0 then
        return refuse(errno, "check inherit", qube)
    end
end
local changes = {}
local busy = argv.busy or {}
local mine = {}
for _, number in ipairs(generations_at_first(qube, volume)) do
    local ds = generation_name(qube, volume, number)
    if not busy[ds] and zfs.exists(ds) and (number == current
        or own_property(ds, argv.holder) ~= nil) then
        mine[#mine + 1] = ds
        -- of what nobody keeps there is its beginning alone
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
    return refuse(errno, "forget", qube)
end
-- Clones among the generations hang on each other's snapshots, so newer
-- ones first, and again until nothing more goes.
local again = true
while again do
    again = false
    for _, ds in ipairs(mine) do
        if zfs.exists(ds) then
            local origin = (zfs.get_prop(ds, "origin"))
            if destroy_unneeded(ds) == 0 then
                again = true
                emptied[#emptied + 1] = garbage_candidate(origin)
            end
        end
    end
end
for _, ds in ipairs(mine) do
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
