-- The current content of a volume becomes its newest revision.
--
-- argv: qube, volume, pointer, started, keep (old revisions to keep; -1: no
--       revisions at all), always (commit also what has not changed)
-- gives: whether a generation that should have gone stays for the janitor
--
-- One transaction group: the snapshot is there and old ones are pruned, or
-- nothing happened.  Repeating it after a crash finds nothing to do.
local qube, volume = argv.qube, argv.volume
local current = current_number(qube, argv.pointer)
if current == nil then
    return refuse(2, "current", qube)
end
local ds = generation_name(qube, volume, current)
if not zfs.exists(ds) then
    return refuse(2, "exists", ds)
end

local list, highest, frozen =
    revisions(qube, volume, generations(qube, volume))
local newest = list[#list]
if argv.keep < 0
    or not (argv.always or changed_since(newest, ds, current)) then
    clear_started(qube, argv.started)
    return prune(qube, volume, list, frozen, current, argv.keep)
end
local snapshot = ds .. "@r" .. string.format("%d", highest + 1)
local errno = zfs.check.snapshot(snapshot)
if errno ~= 0 then
    return refuse(errno, "check snapshot", snapshot)
end
errno = zfs.sync.snapshot(snapshot)
if errno ~= 0 then
    return refuse(errno, "snapshot", snapshot)
end
clear_started(qube, argv.started)
list[#list + 1] = {generation = current, snapshot = snapshot}
return prune(qube, volume, list, frozen, current, argv.keep)
