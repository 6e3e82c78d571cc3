-- SPDX-License-Identifier: BSD-2-Clause
-- A generation whose content nobody keeps becomes again what it was when it was
-- made, and stays the same zvol: its node and udev's link to it stay.
--
-- argv: qube, volume, pointer, size or source as in state.lua
--
-- One transaction group; after a crash it was done, or is asked for again.
-- What nobody wrote to is left alone.  Of what is refused as missing the
-- content is not to be used.
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
    -- it goes to the newest snapshot, and that may be somebody else's
    if has_writes(ds) then
        return refuse(2, "rollback", ds)
    end
end
return nil
