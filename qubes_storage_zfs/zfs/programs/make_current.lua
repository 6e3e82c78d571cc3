-- SPDX-License-Identifier: BSD-2-Clause
-- A generation becomes the current one of its volume: the pointer moves.
--
-- argv: qube, volume, pointer, committed (properties), number (of the new
--         generation); untouched, blank (bytes, see thresholds.py)
--       holder, mark: property that says it is ours, and its value
--       scratch: its content is kept by nobody: no revision is made, but a
--         snapshot to take it back to, and the generation that was current,
--         which must be such a one too, is destroyed
--       size: what was asked for, if scratch; a string
--       copied_from: what the generation is a fresh copy of, for a volume that
--         begins anew at each start
--       pinned: see prune()
--       keep: old revisions to keep, -1 for no revisions at all; absent: prune
--         nothing
--       touched: refuse a generation that was never written to
--       created: this process created the qube's dataset a moment ago
--       origin: clone this snapshot to make the generation (OpenZFS >= 2.4)
--       promote: take over the origin's revisions, if that is the same
--         volume's and no other snapshot would move with them
-- gives: list of datasets for the janitor to look at
--
-- What was current and uncommitted becomes a revision first (unless scratch
-- or keep < 1), so nothing is lost by moving the pointer.  All in one
-- transaction group.  If a step before the pointer moves fails, the pointer
-- is as before and what was made is garbage for the janitor.
local qube, volume = argv.qube, argv.volume
local new = generation_name(qube, volume, argv.number)
local old_number, was_disposable = current_number(qube, argv.pointer)
local old = nil
if old_number ~= nil and old_number ~= argv.number then
    old = generation_name(qube, volume, old_number)
    if not zfs.exists(old) then
        old = nil
    end
end
if old ~= nil and argv.disposable and not was_disposable then
    return refuse(17, "adopt", old)
end
local keep = argv.keep
local commits = not argv.disposable and (keep == nil or keep >= 0)

if argv.origin then
    if zfs.exists(new) then
        return refuse(17, "clone", new)
    end
    local errno = zfs.check.clone(argv.origin, new)
    if errno ~= 0 then
        return refuse(errno, "check clone", new)
    end
elseif not zfs.exists(new) then
    return refuse(2, "exists", new)
elseif argv.refuse_unwritten and is_unwritten(new) then
    return refuse(61, "adopt", new)
end

local list, highest = {}, 0
if not argv.disposable then
    list, highest = revisions(qube, volume, generations(qube, volume))
end
local newest = list[#list]
local first = nil
if old ~= nil and commits and (keep == nil or keep > 0) then
    if changed_since(newest, old, old_number) then
        highest = highest + 1
        first = old .. "@r" .. string.format("%d", highest)
        local errno = zfs.check.snapshot(first)
        if errno ~= 0 then
            return refuse(errno, "check snapshot", first)
        end
    end
end

-- Where only a first part of these changes is made:
--   before the pointer moves, the new generation has our mark, or is a clone that
--     nothing was written to, and has no snapshot but its beginning: it is
--     garbage.  The snapshot `first` is a revision, as stop() makes one;
--   after the pointer moved, the new generation is what stop() takes for
--     changed, because the newest revision is in another one: it commits it and
--     notes what is committed;
--   without the last, which drops a revision, a revision too many stays.
local changes = {}
if argv.origin then
    changes[1] = {zfs.sync.clone, argv.origin, new}
end
changes[#changes + 1] = {zfs.sync.set_prop, new, argv.holder, argv.mark}
if first ~= nil then
    changes[#changes + 1] = {zfs.sync.snapshot, first}
end
local second = nil
if commits then
    second = new .. "@r" .. string.format("%d", highest + 1)
end
local value = persistent_pointer(argv.number, argv.copied_from, second)
if argv.disposable then
    changes[#changes + 1] = {zfs.sync.snapshot, baseline(new)}
    value = disposable_pointer(argv.number, argv.size)
end
local before = own_property(qube, argv.pointer)
changes[#changes + 1] = {zfs.sync.set_prop, qube, argv.pointer, value}
if second ~= nil then
    changes[#changes + 1] = {zfs.sync.snapshot, second}
end
record_committed(changes, qube, argv.committed, second)
-- the blank state that create() left, and nothing was done with, is none to
-- go back to
if keep ~= nil and first == nil and #list == 1
    and newest.number ~= argv.pinned and is_unwritten(newest.snapshot) then
    changes[#changes + 1] = {drop_revision, newest.snapshot}
elseif keep ~= nil and second ~= nil then
    drop_copy(changes, qube, argv.pointer, list)
end
local errno, failed = all_or_none(changes)
if errno ~= 0 then
    -- what failed may come after the pointer
    if before ~= nil then
        zfs.sync.set_prop(qube, argv.pointer, before)
    else
        zfs.sync.inherit(qube, argv.pointer)
    end
    return refuse(errno, "adopt", failed[2])
end

-- The pointer has moved; the rest is tidying.
if argv.created then
    zfs.sync.set_prop(qube, CREATED, "yes")
end
local candidates = {}
local origin = (zfs.get_prop(new, "origin"))
if argv.promote and origin ~= nil then
    local source = string.match(origin, "^(.*)@")
    local ours = string.match(source, "^(.*)/[^/]*$") == qube
    if ours then
        ours = parse_generation(source) == volume
    end
    if ours then
        for snapshot in zfs.list.snapshots(source) do
            if string.match(snapshot, "@r[1-9]%d*$") == nil then
                ours = false
            end
        end
    end
    if ours then
        local conflict = (zfs.check.promote(new))
        if conflict == 0 then
            zfs.sync.promote(new)
            if not has_snapshots(source) then
                destroy_generation(source, candidates)
            end
        end
    end
end
if old ~= nil and argv.disposable then
    destroy_generation(old, candidates)
end
if keep ~= nil and not argv.disposable then
    local now, _, temporary =
        revisions(qube, volume, generations(qube, volume))
    prune(qube, volume, now, temporary, argv.number, keep, candidates)
    if old ~= nil and zfs.exists(old) then
        if not has_snapshots(old) then
            destroy_generation(old, candidates)
        elseif not has_permanent_snapshots(old) then
            candidates[#candidates + 1] = old
        end
    end
end
return candidates
