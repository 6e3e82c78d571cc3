-- SPDX-License-Identifier: BSD-2-Clause
-- Commit the current content of a volume as its newest revision, and prune.
--
-- argv:
--   qube        string   dataset of the qube
--   volume      string   name of the volume
--   pointer     string   property of the qube's dataset: the pointer
--   committed   string   property: the committed state
--   keep        number   revisions to keep; -1: make none
--   pinned      number   a revision that is not pruned; see prune()
--   unmeasured  boolean  measuring is impossible: `unmodified` decides
--   unmodified, doubtful, blank, largest   bytes, see thresholds.py
-- Returns a list of datasets that garbage.lua must check.  Returns {unsure =
-- true} without a change if thresholds.py must measure first to decide whether
-- the volume is modified.
--
-- One transaction group: after a crash, the snapshot exists and old revisions
-- are pruned, or nothing was changed.  If qubesd was killed, the next
-- commit.lua prunes what is left.
local qube, volume = argv.qube, argv.volume
local current = current_number(qube, argv.pointer)
if current == nil then
    return refuse(2, "current", qube)
end
local ds = generation_name(qube, volume, current)
if not zfs.exists(ds) then
    return refuse(2, "exists", ds)
end

local candidates = {}
local list, highest, temporary =
    revisions(qube, volume, generations(qube, volume))
local newest = list[#list]
if argv.keep >= 0 and not argv.unmeasured
    and is_unsure(newest, ds, current) then
    return {unsure = true}
end
local committed = newest and newest.snapshot
-- A first part of these changes is harmless.  If the snapshot exists, but an
-- older one is recorded as committed, state.lua reports the volume as
-- unfinished and stop() records the new one.  If no revision was dropped, one
-- too many remains until the next stop().
local changes = {}
if argv.keep >= 0 and changed_since(newest, ds, current) then
    local snapshot = ds .. "@r" .. string.format("%d", highest + 1)
    local errno = zfs.check.snapshot(snapshot)
    if errno ~= 0 then
        return refuse(errno, "check snapshot", snapshot)
    end
    changes[1] = {zfs.sync.snapshot, snapshot}
    committed = snapshot
    record_committed(changes, qube, argv.committed, committed)
    drop_copy(changes, qube, argv.pointer, list)
    list[#list + 1] = {generation = current, snapshot = snapshot}
else
    if argv.keep < 0 then
        committed = nil
    end
    record_committed(changes, qube, argv.committed, committed)
end
local errno = all_or_none(changes)
if errno ~= 0 then
    return refuse(errno, "commit", ds)
end
prune(qube, volume, list, temporary, current, argv.keep, candidates)
return candidates
