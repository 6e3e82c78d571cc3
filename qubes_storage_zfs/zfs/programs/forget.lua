-- A volume is removed: its pointer, its revisions and its generations.
--
-- argv: qube, volume, pointer; busy (generations in use by an export, by
--       name: left to it)
--       scratch: only if the current generation can be destroyed
-- gives: busy (a generation that somebody holds open, absent if none);
--       stays (true if a clone elsewhere, a hold or a snapshot of somebody
--       else's keeps a generation); origins (datasets cloned from)
--
-- One transaction group.  What cannot go is no volume's any more: no pointer
-- names it and none of its revisions can be listed or reverted to.  What the
-- volume held beyond its cloned snapshots is freed by rolling it back.
local qube, volume = argv.qube, argv.volume
local out = {origins = {}}
if not zfs.exists(qube) then
    return out
end
local current = current_number(qube, argv.pointer)
if argv.scratch and current ~= nil then
    local ds = generation_name(qube, volume, current)
    if zfs.exists(ds) then
        local errno = zfs.check.destroy(ds)
        if errno ~= 0 then
            return refuse(errno, "destroy", ds)
        end
    end
end
if own_property(qube, argv.pointer) ~= nil then
    zfs.sync.inherit(qube, argv.pointer)
end
local busy = argv.busy or {}
-- Clones among the generations hang on each other's snapshots, so newer
-- ones first, and again until nothing more goes.
local again = true
while again do
    again = false
    for _, number in ipairs(generations(qube, volume)) do
        local ds = generation_name(qube, volume, number)
        local origin = (zfs.get_prop(ds, "origin"))
        if not busy[ds] then
            for snapshot in zfs.list.snapshots(ds) do
                if string.match(snapshot, "@[rx][1-9]%d*$") ~= nil
                    and not is_leaving(snapshot) then
                    drop_revision(snapshot)
                end
            end
            if not has_snapshots(ds) then
                if zfs.sync.destroy(ds) == 0 then
                    again = true
                    if origin ~= nil then
                        out.origins[#out.origins + 1] =
                            string.match(origin, "^(.*)@")
                    end
                end
            end
        end
    end
end
for _, number in ipairs(generations(qube, volume)) do
    local ds = generation_name(qube, volume, number)
    if busy[ds] == nil then
        if has_snapshots(ds) then
            out.stays = true
            zfs.sync.rollback(ds)
        else
            out.busy = ds
        end
    end
end
local empty = true
for _ in zfs.list.children(qube) do
    empty = false
end
if empty then
    zfs.sync.destroy(qube)
end
return out
