-- SPDX-License-Identifier: BSD-2-Clause
-- A pool claims a dataset as its container, or gives it back.
--
-- argv: container, claimed_by (property), pool (its name), release (give back)
-- gives: the name of the pool that has it, if that is another; then nothing
--       was changed
local claimed_by = own_property(argv.container, argv.claim)
if claimed_by ~= nil and claimed_by ~= argv.pool then
    return claimed_by
end
local errno
if argv.release then
    errno = zfs.sync.inherit(argv.container, argv.claim)
else
    errno = zfs.sync.set_prop(argv.container, argv.claim, argv.pool)
end
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.container)
end
return nil
