-- SPDX-License-Identifier: BSD-2-Clause
-- Pruning: which revisions are dropped, and the generations that this empties.

-- Drop revisions and temporary snapshots of a volume, and destroy generations
-- that have no snapshot left.
--
--   list        the volume's committed states, oldest first
--   temporary   its snapshots @x<n>, which are all dropped
--   current     number of the current generation, which is never destroyed
--   keep        revisions to keep besides the newest committed state; -1: drop
--               that as well.  argv.pinned, a revision's number, is always kept
--   candidates  see destroy_generation(); also gets each generation that has
--               only snapshots which clones need
local function prune(qube, volume, list, temporary, current, keep, candidates)
    local emptied = {}
    local function drop(item)
        drop_revision(item.snapshot)
        emptied[item.generation] = true
    end
    for _, item in ipairs(temporary) do
        drop(item)
    end
    local others, spared = {}, keep + 1
    for index, item in ipairs(list) do
        if argv.pinned == nil or item.number ~= argv.pinned then
            others[#others + 1] = item
        elseif index == #list and spared > 0 then
            spared = spared - 1
        end
    end
    for index = 1, #others - spared do
        drop(others[index])
    end
    for generation in pairs(emptied) do
        local ds = generation_name(qube, volume, generation)
        if generation == current then
            -- keep it
        elseif not has_snapshots(ds) then
            destroy_generation(ds, candidates)
        elseif not has_permanent_snapshots(ds) then
            candidates[#candidates + 1] = ds
        end
    end
end

