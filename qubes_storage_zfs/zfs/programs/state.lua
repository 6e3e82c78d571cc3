-- Everything the driver asks about one volume.  Read-only.
--
-- argv: container, owner (property), qube (dataset), volume, pointer,
--       started, blank (properties),
--       want (list of native properties of the current generation, each as
--       dear as all the rest: the zvol is opened for it)
--       counted: give numbers; revisions: give these and what follows from
--       them
-- gives: missing (if the container is); owner; current (number, absent if
--       there is no volume); scratch (whether nobody keeps its content);
--       numbers (of all generations); revisions (list of number, generation,
--       snapshot, creation); committed_guid; dirty; blank (as create() made
--       it); frozen (whether a crash left something of freeze.lua);
--       origin_guid; properties
local qube, volume = argv.qube, argv.volume
if not zfs.exists(argv.container) then
    return {missing = true}
end
local out = {owner = own_property(argv.container, argv.owner), numbers = {}}

if not zfs.exists(qube) then
    return out
end
out.qube = true
local numbers = {}
if argv.counted or argv.revisions then
    numbers = generations(qube, volume)
    for index, number in ipairs(numbers) do
        out.numbers[index] = number
    end
end
local current, scratch = current_number(qube, argv.pointer)
if current == nil then
    return out
end
local ds = generation_name(qube, volume, current)
if not zfs.exists(ds) then
    return out
end
out.current = current
out.scratch = scratch
if argv.revisions then
    local list, _, frozen = revisions(qube, volume, numbers)
    out.frozen = #frozen > 0
    out.revisions = {}
    for index, revision in ipairs(list) do
        revision.creation = (zfs.get_prop(revision.snapshot, "creation"))
        out.revisions[index] = revision
    end
    local newest = list[#list]
    local started = own_property(qube, argv.started) ~= nil
    out.dirty = started or moved_since(newest, ds, current)
    out.blank = not started
        and #list < 2 and is_unwritten(ds)
        and (newest == nil or is_unwritten(newest.snapshot))
    if newest ~= nil then
        out.committed_guid = (zfs.get_prop(newest.snapshot, "guid"))
    end
end
out.properties = {}
for _, name in pairs(argv.want) do
    out.properties[name] = (zfs.get_prop(ds, name))
end
local origin = out.properties.origin
if origin ~= nil then
    out.origin_guid = (zfs.get_prop(origin, "guid"))
end
return out
