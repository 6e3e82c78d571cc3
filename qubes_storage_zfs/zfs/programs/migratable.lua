-- SPDX-License-Identifier: BSD-2-Clause
-- List a container of another layout, and what is where the qubes' datasets
-- will be.  Read-only.
--
-- argv:
--   container      string  dataset
--   qubes_root     string  where the qubes' datasets will be
--   old            string  where they are now
--   prefix         string  of all our properties
--   settings       list    properties to report for filesystems
--   zvol_settings  list    properties to report for zvols
-- Returns:
--   old_exists  boolean
--   container   see below; absent if it does not exist
--   qubes_root  the same
--   old         list of the children of argv.old
--   moved       list of the children of argv.qubes_root
--
-- A dataset is {name, type, own (table: our properties of the dataset itself),
-- set (table: those of `settings` that the dataset itself has)}.  A child is
-- such a table with `inner`, a list of its children.  A child of type "volume"
-- in `inner` also has `logical` (bytes) and `snapshots`, a list of {name,
-- createtxg, deferred (boolean: marked for deferred destruction), own, since
-- (bytes written to the zvol after the snapshot)}.
local function about(ds, settings)
    local out = {name = ds, set = {}, own = own_properties(ds, argv.prefix)}
    out.type = (zfs.get_prop(ds, "type"))
    for _, name in pairs(settings) do
        local value, source = zfs.get_prop(ds, name)
        if is_own(ds, source) then
            out.set[name] = value
        end
    end
    return out
end

local function volume(ds)
    local out = about(ds, argv.zvol_settings)
    out.snapshots = {}
    if out.type ~= "volume" then
        return out
    end
    out.logical = (zfs.get_prop(ds, "logicalreferenced"))
    for snapshot in zfs.list.snapshots(ds) do
        local short = string.match(snapshot, "@(.*)$")
        out.snapshots[#out.snapshots + 1] = {
            name = short,
            createtxg = (zfs.get_prop(snapshot, "createtxg")),
            deferred = is_deferred(snapshot),
            own = own_properties(snapshot, argv.prefix),
            since = (zfs.get_prop(ds, "written@" .. short)),
        }
    end
    return out
end

local function qube(ds)
    local inner = {}
    for child in zfs.list.children(ds) do
        inner[#inner + 1] = volume(child)
    end
    return inner
end

local function all_in(ds)
    local list = {}
    for child in zfs.list.children(ds) do
        local item = {name = child, type = (zfs.get_prop(child, "type"))}
        if item.type == "filesystem" then
            item = about(child, argv.settings)
            item.inner = qube(child)
        end
        list[#list + 1] = item
    end
    return list
end

local out = {old = {}, moved = {}}
if not zfs.exists(argv.container) then
    return out
end
out.container = about(argv.container, argv.settings)
out.old_exists = zfs.exists(argv.old)
if zfs.exists(argv.qubes_root) then
    out.qubes_root = about(argv.qubes_root, argv.settings)
    if out.qubes_root.type == "filesystem" then
        out.moved = all_in(argv.qubes_root)
    end
end
if argv.old == argv.qubes_root then
    out.old = out.moved
elseif out.old_exists
    and (zfs.get_prop(argv.old, "type")) == "filesystem" then
    out.old = all_in(argv.old)
end
return out
