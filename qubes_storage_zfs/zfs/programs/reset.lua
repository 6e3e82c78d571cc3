-- SPDX-License-Identifier: BSD-2-Clause
-- Roll a disposable generation back to its baseline snapshot.  It remains the
-- same zvol, so its node and udev's link to it remain.
--
-- argv:
--   qube     string  dataset of the qube
--   volume   string  name of the volume
--   pointer  string  property of the qube's dataset: the pointer
--   size, source     as in state.lua: what would be made now
-- Returns nil.  Refuses with ENOENT (2) if the generation cannot be reset; its
-- content must then not be used.
--
-- One transaction group.  After a crash, the generation was reset, or the next
-- start() resets it.  Nothing is changed if nothing was written.
local qube = argv.qube
local current, disposable, size = current_number(qube, argv.pointer)
if current == nil or not disposable then
    return refuse(2, "current", qube)
end
local ds = generation_name(qube, argv.volume, current)
if not zfs.exists(ds) or not is_resettable(ds, size, is_up_to_date(ds)) then
    return refuse(2, "reset", ds)
end
if has_writes(ds) then
    local errno = (zfs.sync.rollback(ds))
    if errno ~= 0 then
        return refuse(errno, "rollback", ds)
    end
    -- The rollback goes to the newest snapshot, which may be an
    -- administrator's.
    if has_writes(ds) then
        return refuse(2, "rollback", ds)
    end
end
return nil
