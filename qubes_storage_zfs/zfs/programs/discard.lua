-- SPDX-License-Identifier: BSD-2-Clause
-- Destroy a generation that was in somebody's hand and is to be nobody's.
--
-- argv: dataset
-- gives: list of datasets for the janitor to look at
--
-- One transaction group.
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
