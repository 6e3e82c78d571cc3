-- SPDX-License-Identifier: BSD-2-Clause
-- Claim a dataset as the container of a pool, or release it.
--
-- argv:
--   container  string   dataset
--   claim      string   property: the name of the pool
--   pool       string   name of the pool
--   release    boolean  release the dataset instead
-- Returns nil; or the name of another pool that has claimed the dataset.  Then
-- nothing was changed.
--
-- One change, so a crash leaves the dataset claimed or not.
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
