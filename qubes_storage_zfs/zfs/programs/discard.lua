-- SPDX-License-Identifier: BSD-2-Clause
-- Destroy a generation that was reserved and has no pointer.
--
-- argv:
--   dataset  string
-- Returns a list of datasets that garbage.lua must check.
--
-- One transaction group.  After a crash, the generation is garbage or
-- destroyed.
local ds = argv.dataset
if not zfs.exists(ds) then
    return refuse(2, "exists", ds)
end
local candidates = {}
local errno = destroy_generation(ds, candidates)
if errno ~= 0 then
    return refuse(errno, "destroy", ds)
end
return candidates
