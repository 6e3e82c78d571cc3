-- SPDX-License-Identifier: BSD-2-Clause
-- Take a temporary snapshot of a volume without revisions, to clone from it
-- now.
--
-- argv:
--   qube     string  dataset of the qube
--   volume   string  name of the volume
--   pointer  string  property of the qube's dataset: the pointer
-- Returns the name of the snapshot, @x<n>.
--
-- One change.  After a crash, the next stop() of the volume drops the snapshot.
local qube = argv.qube
local current = current_number(qube, argv.pointer)
if current == nil then
    return refuse(2, "current", qube)
end
local ds = generation_name(qube, argv.volume, current)
local number = 1
while zfs.exists(ds .. "@x" .. string.format("%d", number)) do
    number = number + 1
end
local snapshot = ds .. "@x" .. string.format("%d", number)
local errno = zfs.check.snapshot(snapshot)
if errno == 0 then
    errno = zfs.sync.snapshot(snapshot)
end
if errno ~= 0 then
    return refuse(errno, "snapshot", snapshot)
end
return snapshot
