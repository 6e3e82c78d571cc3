-- A pool claims a dataset as its container.
--
-- argv: container, owner (property), pool (its name; absent: give it back)
-- gives: the name of the pool that has it already, if that is another
local owner = own_property(argv.container, argv.owner)
if argv.pool == nil then
    zfs.sync.inherit(argv.container, argv.owner)
    return nil
end
if owner ~= nil and owner ~= argv.pool then
    return owner
end
local errno = zfs.sync.set_prop(argv.container, argv.owner, argv.pool)
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.container)
end
return nil
