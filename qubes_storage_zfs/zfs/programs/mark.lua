-- A volume is about to be handed to a qube: until the next commit its content
-- may differ from its committed state.
--
-- argv: qube, started (property)
-- One transaction group, on disk before the qube can write.
local errno = zfs.sync.set_prop(argv.qube, argv.started, "on")
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.qube)
end
return nil
