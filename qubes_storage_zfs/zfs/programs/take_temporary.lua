-- SPDX-License-Identifier: BSD-2-Clause
-- A snapshot of a volume that keeps no revisions, to clone from at once.
--
-- argv: qube, volume, pointer.  gives: name of the snapshot
-- A crash leaves a snapshot @x<n>; the next stop() of the volume drops it.
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
