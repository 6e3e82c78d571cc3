-- SPDX-License-Identifier: BSD-2-Clause
-- Whether anything was written to a generation.

-- Return whether a zvol, or a snapshot of one, was never written to: it has the
-- size of a blank zvol.  Without argv.blank (bytes, measured by thresholds.py)
-- this returns false.
local function is_unwritten(ds)
    return argv.blank ~= nil
        and (zfs.get_prop(ds, "logicalreferenced")) == argv.blank
end

-- Return whether the current generation is another one than that of the newest
-- committed state, or has another size.
local function differs_from(newest, ds, current)
    return newest == nil or newest.generation ~= current
        or (zfs.get_prop(ds, "volsize"))
            ~= (zfs.get_prop(newest.snapshot, "volsize"))
end

-- Return the bytes written to ds since one of its snapshots.  The property
-- "written" would count from the newest snapshot, which may be an
-- administrator's.  Only a program that changes something sees what is not in a
-- completed transaction group.
local function written_since(ds, snapshot)
    local short = string.match(snapshot, "@(.*)$")
    return (zfs.get_prop(ds, "written@" .. short))
end

-- Return whether a qube wrote to ds since one of its snapshots.  ZFS itself
-- writes up to argv.unmodified bytes, see thresholds.py.
local function is_modified(ds, snapshot)
    return written_since(ds, snapshot) > argv.unmodified
end

-- Return whether it is unknown until thresholds.py has measured if ds is
-- modified: either a qube or ZFS itself may have written so many bytes.
local function is_unsure(newest, ds, current)
    if argv.blank ~= nil or differs_from(newest, ds, current) then
        return false
    end
    local written = written_since(ds, newest.snapshot)
    return written > argv.doubtful and written <= argv.largest
end

local function changed_since(newest, ds, current)
    return differs_from(newest, ds, current)
        or is_modified(ds, newest.snapshot)
end

-- Return whether anything was written to a disposable generation, also by ZFS
-- itself.  It is then rolled back, so no threshold is needed here.
local function has_writes(ds)
    return written_since(ds, baseline(ds)) > 0
end

-- Return whether ds is a clone of the committed state of argv.source; nil if
-- that has no committed state.
local function is_up_to_date(ds)
    local newest = argv.source
        and recorded_committed(argv.source.qube, argv.source.committed)
    if newest then
        return is_clone_of(ds, newest)
    end
    return nil
end

-- Return whether a disposable generation can be rolled back instead of
-- replaced: it is what would be made now, from argv.source or with argv.size.
-- size: what it was made for.  up_to_date: the result of is_up_to_date(ds).
local function is_resettable(ds, size, up_to_date)
    if not zfs.exists(baseline(ds)) then
        return false
    elseif argv.source then
        return up_to_date == true
    end
    return argv.size == size
end

