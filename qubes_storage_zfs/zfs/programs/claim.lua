-- SPDX-License-Identifier: BSD-2-Clause
-- A pool claims a dataset as its container, or gives it back.
--
-- argv: container, owner (property), pool (its name), release (give back)
-- gives: the name of the pool that has it, if that is another; then nothing
--       was changed
local owner = own_property(argv.container, argv.owner)
if owner ~= nil and owner ~= argv.pool then
    return owner
end
local errno
if argv.release then
    errno = zfs.sync.inherit(argv.container, argv.owner)
else
    errno = zfs.sync.set_prop(argv.container, argv.owner, argv.pool)
end
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.container)
end
return nil
