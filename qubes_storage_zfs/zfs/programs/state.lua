-- SPDX-License-Identifier: BSD-2-Clause
-- Everything the driver asks about one volume.  Read-only.
--
-- argv: container, claimed_by (property), prefix (of all our properties), qube
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
-- gives: missing (if the container is); claimed_by (not with dates), or bare, as
--       container.lua has it; qube (whether
--       its dataset exists) or mountable (whether ZFS would mount it if it
--       did); current (number, absent if there is no volume); numbers (of all
--       generations); properties; tuned; wrong (see first_violation());
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
--       something of take_temporary.lua, or of commit.lua), copied_from and copy (see common.lua)
local qube, volume = argv.qube, argv.volume
if not zfs.exists(argv.container) then
    return {missing = true}
end
local out = {numbers = {}}
if not argv.dates then
    out.claimed_by = own_property(argv.container, argv.claim)
    local qubes_root = parent_of(qube)
    if out.claimed_by == nil and zfs.exists(qubes_root) then
        out.bare = is_bare(qubes_root, argv.prefix)
    end
end

if not zfs.exists(qube) then
    local qubes_root = parent_of(qube)
    local exists = zfs.exists(qubes_root)
    out.mountable = not exists or (zfs.get_prop(qubes_root, "mountpoint")) ~= "none"
    if exists and argv.writable then
        out.read_only_by = read_only_by(qubes_root)
    end
    if exists and argv.rules then
        out.wrong = (first_violation(qubes_root, argv.rules))
    end
    return out
end
out.qube = true
local current, disposable, size = current_number(qube, argv.pointer)
local ds = current and generation_name(qube, volume, current)
local exists = ds and zfs.exists(ds)
if exists and disposable then
    out.disposable = true
    out.up_to_date = is_up_to_date(ds)
    out.resettable = is_resettable(ds, size, out.up_to_date)
    out.modified = out.resettable and has_writes(ds)
end
if argv.rules then
    local own = true
    if exists then
        out.wrong, own = first_violation(ds, argv.rules)
    end
    if own and out.wrong == nil then
        out.wrong = (first_violation(qube, argv.rules))
    end
end
if argv.writable then
    out.read_only_by = read_only_by(exists and ds or qube)
end
local numbers = {}
if argv.counted and not out.resettable or argv.revisions then
    numbers = generations(qube, volume)
    for index, number in ipairs(numbers) do
        out.numbers[index] = number
    end
end
if not exists then
    return out
end
out.current = current
if not disposable and not argv.revisions then
    out.committed = recorded_committed(qube, argv.committed)
end
if not disposable and argv.revisions then
    local list, _, temporary = revisions(qube, volume, numbers)
    out.unfinished = #temporary > 0 or is_record_outdated(list, qube, argv.committed)
    out.copied_from, out.copy = copied_from(qube, argv.pointer)
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
for _, name in pairs(argv.native) do
    out.properties[name] = (zfs.get_prop(ds, name))
end
return out
