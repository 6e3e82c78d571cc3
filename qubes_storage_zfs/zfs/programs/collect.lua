-- SPDX-License-Identifier: BSD-2-Clause
-- Collect garbage: destroy generations that no pointer needs.
--
-- argv:
--   datasets    list of {name, guid}, from garbage.lua
--   empty       list: qubes' datasets that are empty, from garbage.lua
--   qubes_root  string  dataset
--   prefix      string  of pointers
--   holder      string  property: the holder mark
--   reserved    table   whose keys are the datasets that this process reserves
-- Returns:
--   destroyed   list of datasets
--   busy        list of garbage that a process has open
--   candidates  list of datasets below other qubes roots that may be garbage
--
-- Each dataset is checked again here, because no change can come between the
-- check and the destruction: it has the same guid, no pointer names it, and it
-- has no snapshot that more than one clone needs.  A dataset that it was cloned
-- from is destroyed as well if nothing else needs the origin.
--
-- Each destruction is complete in itself.  A crash leaves the rest as garbage.
local out = {destroyed = {}, busy = {}, candidates = {}}
local emptied = {}

local function unreachable(ds)
    local qube = parent_of(ds)
    local volume, number = parse_generation(ds)
    return current_number(qube, argv.prefix .. volume) ~= number
        and (not has_snapshots(ds) or sole_clone(ds) ~= nil)
end

local function is_marked(ds)
    return own_property(ds, argv.holder) ~= nil
end

local function in_qubes_root(ds)
    return string.sub(ds, 1, #argv.qubes_root + 1) == argv.qubes_root .. "/"
end

local function remove(ds)
    local origin = (zfs.get_prop(ds, "origin"))
    if destroy_unneeded(ds) ~= 0 then
        if not has_snapshots(ds) then
            out.busy[#out.busy + 1] = ds
        end
        return nil
    end
    out.destroyed[#out.destroyed + 1] = ds
    emptied[parent_of(ds)] = true
    return origin
end

for _, item in pairs(argv.datasets) do
    local ds = item.name
    if zfs.exists(ds) and (zfs.get_prop(ds, "guid")) == item.guid
        and unreachable(ds) then
        local origin = remove(ds)
        while origin ~= nil do
            local cloned = origin
            local source = string.match(cloned, "^(.*)@")
            origin = nil
            if in_qubes_root(source) and zfs.exists(source)
                and argv.reserved[source] == nil
                and is_marked(source) and unreachable(source) then
                origin = remove(source)
            elseif not in_qubes_root(source) then
                out.candidates[#out.candidates + 1] = garbage_candidate(cloned)
            end
        end
    end
end
for _, qube in pairs(argv.empty) do
    emptied[qube] = true
end
for qube in pairs(emptied) do
    if zfs.exists(qube) and is_empty_qube(qube, argv.prefix) then
        zfs.sync.destroy(qube)
    end
end
return out
