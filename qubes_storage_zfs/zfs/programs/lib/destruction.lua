-- SPDX-License-Identifier: BSD-2-Clause
-- Shared by the programs that destroy generations: what goes with them, and what
-- must be looked at then.

-- Destroy a generation without snapshots, or with its beginning alone.  Gives
-- the errno.
local function destroy_whole(ds)
    if zfs.exists(baseline(ds)) then
        drop_revision(baseline(ds))
    end
    return (zfs.sync.destroy(ds))
end

-- The generation that a destroyed clone was cloned from, if that may be garbage
-- now: the snapshot went with the clone, or is kept for one other clone.
local function garbage_candidate(origin)
    if origin == nil then
        return nil
    elseif zfs.exists(origin) and not (is_deferred(origin)
        and (zfs.get_prop(origin, "numclones")) == 1) then
        return nil
    end
    return string.match(origin, "^(.*)@")
end

-- Destroy a generation that nothing needs.  What the janitor must look at then
-- is added to `left`: the generation, if somebody holds it open; or what it
-- was cloned from, see garbage_candidate().  Gives the errno.
local function destroy_generation(ds, candidates)
    local origin = (zfs.get_prop(ds, "origin"))
    local errno = destroy_whole(ds)
    if errno ~= 0 then
        candidates[#candidates + 1] = ds
    else
        candidates[#candidates + 1] = garbage_candidate(origin)
    end
    return errno
end

