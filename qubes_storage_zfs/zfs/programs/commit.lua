-- SPDX-License-Identifier: BSD-2-Clause
-- The current content of a volume becomes its newest revision.
--
-- argv: qube, volume, pointer, committed (properties); untouched, doubtful,
--       blank, largest (bytes, see thresholds.py); keep (old revisions to keep; -1: no
--       revisions at all), pinned (see prune()), unmeasured (it cannot
--       be measured: untouched decides)
-- gives: list of datasets for the janitor to look at; or unsure (true), if
--       whether the volume changed is known when thresholds.py has measured:
--       then nothing was changed
--
-- One transaction group: the snapshot is there and old ones are pruned, or
-- nothing happened.  Repeating it after a crash finds nothing to do, or what
-- is left to prune if qubesd was killed.
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
-- Where only a first part of these changes is made, the revision is there and
-- another one is noted as committed, which state.lua reports as unfinished; or a
-- revision too many stays until the next stop().
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
