-- SPDX-License-Identifier: BSD-2-Clause
-- Report the state of one volume.  Read-only.
--
-- argv:
--   container   string   dataset
--   claim       string   property of the container: the name of the pool
--   prefix      string   of all our properties
--   qube        string   dataset of the qube
--   volume      string   name of the volume
--   pointer     string   property of the qube's dataset: the pointer
--   committed   string   property: the committed state
--   unmodified, doubtful, blank, largest   bytes, see thresholds.py
--   native      list     native properties of the current generation to report;
--                        each is as slow as all the rest, because ZFS opens the
--                        zvol for it
--   counted     boolean  report `numbers`, unless the volume is resettable
--   revisions   boolean  report revisions and what follows from them
--   dates       boolean  report when each revision was created, instead of what
--                        follows from them
--   size        string   "<size>[/<blocksize>]", or
--   source      table    {qube, committed}: dataset, and property that records
--                        its committed state.  A disposable volume would be
--                        created for this size, or from this source
--   tuned       string   property of the current generation to report
--   rules       list     of {name, value}: report whether the current
--                       generation, or what a new one inherits, breaks one
--   writable    boolean  report read_only_by
-- Returns {missing = true} if the container does not exist, or:
--   claimed_by   string: pool that has claimed the container; not with dates
--   bare         boolean, as in container.lua; not with dates
--   qube         boolean: the qube's dataset exists
--   mountable    boolean: ZFS would mount the qube's dataset, if it is created
--   current      number of the current generation; absent if no volume exists
--   numbers      list of the numbers of all generations
--   properties   table: argv.native, name -> value
--   tuned        string
--   wrong        table, see first_violation()
--   read_only_by string: the dataset whose readonly=on is in force
-- Of a disposable volume, also:
--   disposable   true
--   resettable   boolean: reset.lua can roll it back to what would be made now
--   modified     boolean: reset.lua must do so
--   up_to_date   boolean: it is a clone of the source's committed state; absent
--                if that has none
-- Of any other volume, without argv.revisions, also:
--   committed    string: the recorded snapshot; absent if there is none
-- and with argv.revisions:
--   revisions    list of {number, generation, snapshot, creation}
--   unfinished   boolean: a crash left a temporary snapshot, or a commit that
--                was not recorded
--   copied_from, copy   see copied_from()
--   dirty        boolean: modified since the newest revision
--   unsure       boolean: thresholds.py must measure before `dirty` is certain
--   blank        boolean: as create() made it
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
    out.mountable = not exists
        or (zfs.get_prop(qubes_root, "mountpoint")) ~= "none"
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
    out.unfinished = #temporary > 0
        or is_record_outdated(list, qube, argv.committed)
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
