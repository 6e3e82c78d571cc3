-- SPDX-License-Identifier: BSD-2-Clause
-- Everything the driver asks about one volume.  Read-only.
--
-- argv: container, owner (property), prefix (of all our properties), qube
--       (dataset), volume, pointer, committed (properties), untouched, blank,
--       largest (bytes, see thresholds.py),
--       want (list of native properties of the current generation, each as
--       dear as all the rest: the zvol is opened for it)
--       counted: give numbers, unless what there is can be used again;
--       revisions: give these and what follows from them; dates: give their
--       creation instead of what follows; size (a string) or source (qube,
--       and property that says what is committed there) of what nobody keeps,
--       if it is made now; tuned (property): give that of the current
--       generation; rules (list of {name, value}): say whether what is to be
--       opened, or what a new generation inherits from, breaks one; writable:
--       it will be written to
-- gives: missing (if the container is); owner (not with dates), or bare, as
--       container.lua has it; qube (whether
--       its dataset exists) or mountable (whether ZFS would mount it if it
--       did); current (number, absent if there is no volume); numbers (of all
--       generations); properties; tuned; wrong (see first_wrong());
--       read_only_by (with writable: the dataset where readonly=on is set,
--       absent if it can be written to)
--       of what nobody keeps: scratch (true); usable (whether it can be taken
--       back to what would be made now); touched (whether it must be); fresh
--       (whether it is a clone of the source's committed state, absent if that
--       has none)
--       of what is kept: committed (snapshot, absent if there is none); or
--       instead revisions (list of number, generation, snapshot, creation),
--       dirty, unsure (whether it is dirty only until thresholds.py has
--       measured), blank (as create() made it), frozen (whether a crash left
--       something of take_temporary.lua, or of commit.lua), begun_from and begun (see common.lua)
local qube, volume = argv.qube, argv.volume
if not zfs.exists(argv.container) then
    return {missing = true}
end
local out = {numbers = {}}
if not argv.dates then
    out.owner = own_property(argv.container, argv.owner)
    local home = parent_of(qube)
    if out.owner == nil and zfs.exists(home) then
        out.bare = is_bare(home, argv.prefix)
    end
end

if not zfs.exists(qube) then
    local home = parent_of(qube)
    local there = zfs.exists(home)
    out.mountable = not there or (zfs.get_prop(home, "mountpoint")) ~= "none"
    if there and argv.writable then
        out.read_only_by = read_only_by(home)
    end
    if there and argv.rules then
        out.wrong = (first_wrong(home, argv.rules))
    end
    return out
end
out.qube = true
local current, scratch, size = current_number(qube, argv.pointer)
local ds = current and generation_name(qube, volume, current)
local there = ds and zfs.exists(ds)
if there and scratch then
    out.scratch = true
    out.fresh = is_fresh(ds)
    out.usable = is_usable(ds, size, out.fresh)
    out.touched = out.usable and is_used(ds)
end
if argv.rules then
    local own = true
    if there then
        out.wrong, own = first_wrong(ds, argv.rules)
    end
    if own and out.wrong == nil then
        out.wrong = (first_wrong(qube, argv.rules))
    end
end
if argv.writable then
    out.read_only_by = read_only_by(there and ds or qube)
end
local numbers = {}
if argv.counted and not out.usable or argv.revisions then
    numbers = generations(qube, volume)
    for index, number in ipairs(numbers) do
        out.numbers[index] = number
    end
end
if not there then
    return out
end
out.current = current
if not scratch and not argv.revisions then
    out.committed = noted_committed(qube, argv.committed)
end
if not scratch and argv.revisions then
    local list, _, frozen = revisions(qube, volume, numbers)
    out.frozen = #frozen > 0 or is_noted_wrong(list, qube, argv.committed)
    out.begun_from, out.begun = begun_from(qube, argv.pointer)
    out.revisions = {}
    for index, revision in ipairs(list) do
        if argv.dates then
            revision.creation = (zfs.get_prop(revision.snapshot, "creation"))
        end
        out.revisions[index] = revision
    end
    if not argv.dates then
        local newest = list[#list]
        out.dirty = changed_since(newest, ds, current)
        out.unsure = is_unsure(newest, ds, current)
        out.blank = #list < 2 and is_unwritten(ds)
            and (newest == nil or is_unwritten(newest.snapshot))
    end
end
if argv.tuned then
    out.tuned = own_property(ds, argv.tuned)
end
out.properties = {}
for _, name in pairs(argv.want) do
    out.properties[name] = (zfs.get_prop(ds, name))
end
return out
