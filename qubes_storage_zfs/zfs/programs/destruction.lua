-- SPDX-License-Identifier: BSD-2-Clause
-- Shared by the programs that destroy generations: what goes with them, and what
-- must be looked at then.

-- Destroy a generation without snapshots, or with its beginning alone.  Gives
-- the errno.
local function destroy_whole(ds)
    if zfs.exists(beginning(ds)) then
        drop_revision(beginning(ds))
    end
    return (zfs.sync.destroy(ds))
end

-- The generation that a destroyed clone was cloned from, if that may be garbage
-- now: the snapshot went with the clone, or is kept for one other clone.
local function to_look_at(origin)
    if origin == nil then
        return nil
    elseif zfs.exists(origin) and not (is_leaving(origin)
        and (zfs.get_prop(origin, "numclones")) == 1) then
        return nil
    end
    return string.match(origin, "^(.*)@")
end

-- Destroy a generation that nothing needs.  What the janitor must look at then
-- is added to `left`: the generation, if somebody holds it open; or what it
-- was cloned from, see to_look_at().  Gives the errno.
local function destroy_generation(ds, left)
    local origin = (zfs.get_prop(ds, "origin"))
    local errno = destroy_whole(ds)
    if errno ~= 0 then
        left[#left + 1] = ds
    else
        left[#left + 1] = to_look_at(origin)
    end
    return errno
end

-- Of the revisions in `list`, oldest first, keep the newest `keep` besides
-- the committed one (none at all if keep is -1) and argv.pinned, and nothing
-- that is `frozen`.  A generation that is not current and thereby lost its
-- last snapshot goes too; the janitor looks at one that a clone still keeps.
-- For `left` see destroy_generation().
local function prune(qube, volume, list, frozen, current, keep, left)
    local emptied = {}
    local function drop(item)
        drop_revision(item.snapshot)
        emptied[item.generation] = true
    end
    for _, item in ipairs(frozen) do
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
            destroy_generation(ds, left)
        elseif not has_lasting_snapshots(ds) then
            left[#left + 1] = ds
        end
    end
end

