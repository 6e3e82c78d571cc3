-- SPDX-License-Identifier: BSD-2-Clause
-- Find the first dataset of a pool whose properties are not allowed: the
-- qubes root, then everything below it, level by level.  Read-only.
--
-- All of it may have been written by another machine.  Names and values are
-- returned as they are on disk; the caller shortens and escapes them.
--
-- argv: container, home, owner (property), prefix (of all our properties),
--       limit (number of datasets),
--       rules (list of {name, value}: for home and all below),
--       root_rules (the same, for home alone)
-- gives: missing (container or home, if it does not exist); owner (value of
--        that property set on the container), or bare, as container.lua has
--        it; and, if something is not
--        allowed, dataset, property, value (absent if there is none), source
--        and wanted; else count (of datasets)
local out = {}
if not zfs.exists(argv.container) then
    return {missing = argv.container}
end
out.owner = own_property(argv.container, argv.owner)
if not zfs.exists(argv.home) then
    out.missing = argv.home
    return out
end
out.bare = out.owner == nil and is_bare(argv.home, argv.prefix)

-- Whether dom0 would mount it: "zfs mount -a" does at each boot.
local function would_mount(ds)
    local mountpoint, source = zfs.get_prop(ds, "mountpoint")
    if mountpoint == nil or mountpoint == "none" or mountpoint == "legacy"
        or (zfs.get_prop(ds, "canmount")) == "off" then
        return nil
    end
    return {dataset = ds, property = "mountpoint", value = mountpoint,
        source = source, wanted = "none"}
end

local function wrong_with(ds)
    local wrong = first_wrong(ds, argv.rules)
    if wrong == nil and ds == argv.home then
        wrong = first_wrong(ds, argv.root_rules)
    end
    return wrong or would_mount(ds)
end

local queue, first, last = {argv.home}, 1, 1
while first <= last do
    local ds = queue[first]
    queue[first] = nil
    first = first + 1
    local wrong = wrong_with(ds)
    if wrong ~= nil then
        wrong.owner, wrong.bare = out.owner, out.bare
        return wrong
    end
    for child in zfs.list.children(ds) do
        last = last + 1
        queue[last] = child
        if last > argv.limit then
            return {owner = out.owner, bare = out.bare, dataset = argv.home,
                property = "number of datasets", value = "more",
                wanted = "at most " .. string.format("%d", argv.limit)}
        end
    end
end
out.count = last
return out
