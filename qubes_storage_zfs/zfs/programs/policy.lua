-- SPDX-License-Identifier: BSD-2-Clause
-- Find the first dataset of a pool that has a property with a value that is not
-- allowed.  Checks the qubes root, then everything below it, level by level.
-- Read-only.
--
-- Another machine may have written all of it.  Names and values are returned as
-- they are on disk; the caller shortens and escapes them.
--
-- argv:
--   container   string  dataset
--   qubes_root  string  dataset
--   claim       string  property: the name of the pool
--   prefix      string  of all our properties
--   limit       number  of datasets that a pool may have
--   rules       list of {name, value}: for the qubes root and everything below
--   root_rules  list of {name, value}: for the qubes root in addition
-- Returns:
--   missing     string: the container or the qubes root, if it does not exist
--   claimed_by  string: the pool that has claimed the container
--   bare        boolean, as in container.lua
--   count       number of datasets, if all of them are allowed; else
--   dataset, property, value (absent if there is none), source, required
local out = {}
if not zfs.exists(argv.container) then
    return {missing = argv.container}
end
out.claimed_by = own_property(argv.container, argv.claim)
if not zfs.exists(argv.qubes_root) then
    out.missing = argv.qubes_root
    return out
end
out.bare = out.claimed_by == nil and is_bare(argv.qubes_root, argv.prefix)

-- Return a violation if dom0 would mount ds, as "zfs mount -a" does at each
-- boot.
local function would_mount(ds)
    local mountpoint, source = zfs.get_prop(ds, "mountpoint")
    if mountpoint == nil or mountpoint == "none" or mountpoint == "legacy"
        or (zfs.get_prop(ds, "canmount")) == "off" then
        return nil
    end
    return {dataset = ds, property = "mountpoint", value = mountpoint,
        source = source, required = "none"}
end

local function wrong_with(ds)
    local wrong = first_violation(ds, argv.rules)
    if wrong == nil and ds == argv.qubes_root then
        wrong = first_violation(ds, argv.root_rules)
    end
    return wrong or would_mount(ds)
end

local queue, first, last = {argv.qubes_root}, 1, 1
while first <= last do
    local ds = queue[first]
    queue[first] = nil
    first = first + 1
    local wrong = wrong_with(ds)
    if wrong ~= nil then
        wrong.claimed_by, wrong.bare = out.claimed_by, out.bare
        return wrong
    end
    for child in zfs.list.children(ds) do
        last = last + 1
        queue[last] = child
        if last > argv.limit then
            return {claimed_by = out.claimed_by, bare = out.bare,
                dataset = argv.qubes_root,
                property = "number of datasets", value = "more",
                required = "at most " .. string.format("%d", argv.limit)}
        end
    end
end
out.count = last
return out
