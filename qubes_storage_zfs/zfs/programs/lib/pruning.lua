-- SPDX-License-Identifier: BSD-2-Clause
-- Which revisions go, and what goes with them.

-- Of the revisions in `list`, oldest first, keep the newest `keep` besides
-- the committed one (none at all if keep is -1) and argv.pinned, and nothing
-- that is `frozen`.  A generation that is not current and thereby lost its
-- last snapshot goes too; the janitor looks at one that a clone still keeps.
-- For `left` see destroy_generation().
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
            -- it stays
        elseif not has_snapshots(ds) then
            destroy_generation(ds, candidates)
        elseif not has_permanent_snapshots(ds) then
            candidates[#candidates + 1] = ds
        end
    end
end

