-- SPDX-License-Identifier: BSD-2-Clause
-- Destruction of generations, and the garbage that a destruction leaves.

-- Destroy a generation that has no snapshot, or only its baseline snapshot.
-- Returns an errno.
local function destroy_whole(ds)
    if zfs.exists(baseline(ds)) then
        drop_revision(baseline(ds))
    end
    return (zfs.sync.destroy(ds))
end

-- Return the generation that a destroyed clone was cloned from if it may be
-- garbage now; nil if not.  It may be garbage if the snapshot `origin` was
-- destroyed with the clone, or exists for one other clone only.
local function garbage_candidate(origin)
    if origin == nil then
        return nil
    elseif zfs.exists(origin) and not (is_deferred(origin)
        and (zfs.get_prop(origin, "numclones")) == 1) then
        return nil
    end
    return string.match(origin, "^(.*)@")
end

-- Destroy a generation that no pointer and no clone needs.  Returns an errno.
-- Adds to `candidates` what garbage.lua must check later: the generation itself
-- if a process has it open, else the result of garbage_candidate().
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

