-- SPDX-License-Identifier: BSD-2-Clause
-- What is in a dataset that a pool of another layout is in, and where its
-- qubes' datasets would be.  Read-only.
--
-- argv: container, qubes_root, old (where its qubes' datasets are now), prefix (of
--       all our properties), settings, zvol_settings (lists of properties)
-- gives: old_exists; container, qubes_root (absent if missing): {type, own (our properties that
--       are set on it), set (those of settings that are set on it)};
--       old, moved (lists of children of old and of qubes_root, the same if these are
--       one): {name, type, own, set, inner (list of children: {name, type, own,
--       set, logical (bytes), snapshots (list of {name, createtxg, leaving, own,
--       since (bytes written to the volume after it)})})}
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
