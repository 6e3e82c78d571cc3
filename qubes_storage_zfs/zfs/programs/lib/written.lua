-- SPDX-License-Identifier: BSD-2-Clause
-- Whether a qube wrote to a generation.

-- Whether a zvol or a snapshot of one was never written to: it takes what a
-- blank one does.  Without argv.blank, which thresholds.py measures, none is.
local function is_unwritten(ds)
    return argv.blank ~= nil
        and (zfs.get_prop(ds, "logicalreferenced")) == argv.blank
end

-- Whether the current generation ds is another than the newest revision's,
-- or of another size.
local function differs_from(newest, ds, current)
    return newest == nil or newest.generation ~= current
        or (zfs.get_prop(ds, "volsize"))
            ~= (zfs.get_prop(newest.snapshot, "volsize"))
end

-- Bytes written to ds since a snapshot of it.  Counted from that very one:
-- somebody else may have made newer ones, and "written" counts from the newest
-- of all.  What is not in a transaction group that has ended is only seen by a
-- program that changes something.
local function written_since(ds, snapshot)
    local short = string.match(snapshot, "@(.*)$")
    return (zfs.get_prop(ds, "written@" .. short))
end

-- Whether a qube wrote to ds since a snapshot of it.  ZFS itself writes up to
-- argv.unmodified bytes, see thresholds.py.
local function is_modified(ds, snapshot)
    return written_since(ds, snapshot) > argv.unmodified
end

-- Whether it is known only when thresholds.py has measured that ds is changed:
-- a change may have written that much, and so may ZFS itself.
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

-- Whether anything at all was written to such a generation, if only by ZFS
-- itself: what is discarded is rolled back then, and no threshold can be wrong.
local function has_writes(ds)
    return written_since(ds, baseline(ds)) > 0
end

-- Whether it is a clone of what is committed of argv.source; nil if there is
-- no such thing.
local function is_up_to_date(ds)
    local newest = argv.source
        and recorded_committed(argv.source.qube, argv.source.committed)
    if newest then
        return is_clone_of(ds, newest)
    end
    return nil
end

-- Whether it can be taken back to what would be made now, of argv.source or of
-- argv.size, where it was made of `size`; `fresh` is what is_up_to_date() says.
local function is_resettable(ds, size, up_to_date)
    if not zfs.exists(baseline(ds)) then
        return false
    elseif argv.source then
        return up_to_date == true
    end
    return argv.size == size
end

