-- SPDX-License-Identifier: BSD-2-Clause
-- Make a generation the current one of its volume: move the pointer.
--
-- argv:
--   qube        string   dataset of the qube
--   volume      string   name of the volume
--   pointer     string   property of the qube's dataset: the pointer
--   committed   string   property: the committed state
--   number      number   of the new current generation
--   holder      string   property: the holder mark
--   mark        string   value of that property
--   created     boolean  this process has just created the qube's dataset
--   disposable  boolean  the content is discarded at stop: take a baseline
--                        snapshot instead of a revision, and destroy the former
--                        current generation, which must be disposable as well
--   size        string   "<size>[/<blocksize>]" of a disposable generation
--   copied_from string   source that the generation is a copy of, for a volume
--                        that is reset at each start; see lib/pointer.lua
--   keep        number   revisions to keep; -1: make none; absent: do not prune
--   pinned      number   a revision that is not pruned; see prune()
--   refuse_unwritten     boolean: refuse a generation that was never written to
--   origin      string   clone this snapshot to make the generation
--                        (OpenZFS 2.4.0 and newer)
--   promote     boolean  promote the generation over its origin, if that is a
--                        generation of this volume and has only revisions of it
--   unmodified, blank    bytes, see thresholds.py
-- Returns a list of datasets that garbage.lua must check.
--
-- If the former current generation has uncommitted data, that is first
-- committed as a revision (unless disposable, or keep < 1).  So moving the
-- pointer loses nothing.
--
-- One transaction group.  If a change before the pointer fails, the pointer is
-- unchanged, and the new generation is garbage.
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
    return refuse(17, "make current", old)
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
    return refuse(61, "make current", new)
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

-- A first part of these changes is harmless:
--
-- - Before the pointer moves, the new generation is garbage: it has our mark,
--   or is a clone that nothing was written to, and it has no snapshot but its
--   baseline snapshot.  The snapshot `first` is a revision like those that
--   stop() makes.
--
-- - After the pointer moved, the newest revision is in another generation, so
--   stop() takes the new generation for modified, commits it and records that.
-- - Without the last change, which drops a revision, one revision too many
--   remains.
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
-- The blank state that create() committed, and that nothing was written to, is
-- not kept as a revision.
if keep ~= nil and first == nil and #list == 1
    and newest.number ~= argv.pinned and is_unwritten(newest.snapshot) then
    changes[#changes + 1] = {drop_revision, newest.snapshot}
elseif keep ~= nil and second ~= nil then
    drop_copy(changes, qube, argv.pointer, list)
end
local errno, failed = all_or_none(changes)
if errno ~= 0 then
    -- The change that failed may come after the pointer.
    if before ~= nil then
        zfs.sync.set_prop(qube, argv.pointer, before)
    else
        zfs.sync.inherit(qube, argv.pointer)
    end
    return refuse(errno, "make current", failed[2])
end

-- The pointer has moved: the operation is complete.  The rest cleans up.
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
