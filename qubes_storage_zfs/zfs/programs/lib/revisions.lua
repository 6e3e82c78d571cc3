-- SPDX-License-Identifier: BSD-2-Clause
-- Revisions of a volume, its baseline snapshot and its committed state.

-- Return whether a snapshot is marked for deferred destruction: it is not
-- a revision, and ZFS destroys it with its last clone.
local function is_deferred(snapshot)
    return (zfs.get_prop(snapshot, "defer_destroy")) == "on"
end

-- Return the name of the baseline snapshot of a disposable generation.
local function baseline(ds)
    return ds .. "@s1"
end

-- Return the committed states of a volume, the highest number that any had, and
-- its temporary snapshots.
--
-- numbers: those of the volume's generations.  The first list is sorted by
-- number and has {number, generation, snapshot}; the list of temporary
-- snapshots, left by a crash after take_temporary.lua, has the same without
-- number.
local function revisions(qube, volume, numbers)
    local list, highest, temporary = {}, 0, {}
    for _, generation in ipairs(numbers) do
        local ds = generation_name(qube, volume, generation)
        for snapshot in zfs.list.snapshots(ds) do
            local kind, digits = string.match(snapshot, "@([rx])([1-9]%d*)$")
            local number = kind == "r" and tonumber(digits) or nil
            if number ~= nil and number > highest then
                highest = number
            end
            if kind ~= nil and not is_deferred(snapshot) then
                local target = number and list or temporary
                target[#target + 1] = {
                    number = number,
                    generation = generation,
                    snapshot = snapshot,
                }
            end
        end
    end
    table.sort(list, function(a, b) return a.number < b.number end)
    return list, highest, temporary
end

-- Append the change that records `snapshot` as the committed state of a volume,
-- nil for none, unless that is recorded already.  The property is a shortcut
-- for clones of the volume, because listing snapshots is slow.
local function record_committed(changes, qube, property, snapshot)
    local last = snapshot and string.match(snapshot, "/([^/]*)$")
    if last == own_property(qube, property) then
        return
    elseif last then
        changes[#changes + 1] = {zfs.sync.set_prop, qube, property, last}
    else
        changes[#changes + 1] = {zfs.sync.inherit, qube, property}
    end
end

-- Return the snapshot that is recorded as the committed state; nil if none is.
local function recorded_committed(qube, property)
    local last = own_property(qube, property)
    if last ~= nil and zfs.exists(qube .. "/" .. last) then
        return qube .. "/" .. last
    end
    return nil
end

-- Return whether a snapshot is recorded that is not the newest in `list`: ZFS
-- ended commit.lua between two changes.
local function is_record_outdated(list, qube, property)
    local noted, newest = own_property(qube, property), list[#list]
    return noted ~= nil and newest ~= nil
        and noted ~= string.match(newest.snapshot, "/([^/]*)$")
end

local function is_clone_of(ds, snapshot)
    for clone in zfs.list.clones(snapshot) do
        if clone == ds then
            return true
        end
    end
    return false
end

-- Return whether ds has a snapshot besides its baseline snapshot.
local function has_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if snapshot ~= baseline(ds) or is_deferred(snapshot) then
            return true
        end
    end
    return false
end

-- Return whether ds has a snapshot that is not marked for deferred destruction.
local function has_permanent_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if not is_deferred(snapshot) then
            return true
        end
    end
    return false
end

-- Destroy a snapshot.  While a clone needs it, it remains, marked for deferred
-- destruction.  Ignores a failure, and always returns 0.
local function drop_revision(snapshot)
    zfs.sync.destroy{snapshot, defer=true}
    return 0
end

-- Append the change that drops the revision that is only a copy (see
-- pointer.lua), and remove it from `list`.  No session wrote it, so it is
-- dropped with the next commit.  It does not count as one of the revisions to
-- keep.
local function drop_copy(changes, qube, pointer, list)
    local _, copy = copied_from(qube, pointer)
    for index, item in ipairs(list) do
        if item.number == copy and copy ~= argv.pinned then
            changes[#changes + 1] = {drop_revision, item.snapshot}
            table.remove(list, index)
            return
        end
    end
end

