-- SPDX-License-Identifier: BSD-2-Clause
-- Revisions of a volume, and which snapshot of them is committed.

-- Whether a snapshot is on its way out: it is no revision any more, and goes
-- with its last clone.
local function is_deferred(snapshot)
    return (zfs.get_prop(snapshot, "defer_destroy")) == "on"
end

-- What a generation whose content nobody keeps was when it was made.
local function baseline(ds)
    return ds .. "@s1"
end

-- Revisions of a volume in the generations `numbers`: list of {number=,
-- generation=, snapshot=}, sorted; the highest number ever seen among them;
-- and what a crash left of take_temporary.lua, a list of the same without number.
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

-- What is committed of a volume is written down beside its pointer, by what
-- makes it so, for those that ask whether they are clones of it: to list
-- snapshots is dear.  A change to be made, if it is not so written.
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

-- That snapshot; nil if nothing is committed.
local function recorded_committed(qube, property)
    local last = own_property(qube, property)
    if last ~= nil and zfs.exists(qube .. "/" .. last) then
        return qube .. "/" .. last
    end
    return nil
end

-- Whether another snapshot than the newest in `list` is noted: commit.lua was
-- ended between two changes.
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

-- Whether there are snapshots besides its beginning, which goes with it.
local function has_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if snapshot ~= baseline(ds) or is_deferred(snapshot) then
            return true
        end
    end
    return false
end

-- Whether there are snapshots that are not on their way out.
local function has_permanent_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if not is_deferred(snapshot) then
            return true
        end
    end
    return false
end

-- Take a revision away.  With a living clone it stays until that goes, but
-- is a revision no more.
local function drop_revision(snapshot)
    zfs.sync.destroy{snapshot, defer=true}
    return 0
end

-- The revision that is no more than what its generation was made from is no
-- state that anybody left: it goes with the next one, not as one of those that
-- are kept.  A change to be made; and it is taken off the list.
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

