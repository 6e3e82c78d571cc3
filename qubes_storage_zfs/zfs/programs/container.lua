-- SPDX-License-Identifier: BSD-2-Clause
-- What is where a pool's container should be.  Read-only.
--
-- argv: container, home, owner (property), prefix (of all our properties)
-- gives: parent, exists, home (booleans); type; owner; owner_above (a dataset
--        above that some pool has claimed); foreign (a child of home that is
--        not the dataset of a qube of ours, absent if there is none); bare (of
--        a container without owner: whether it was received without its
--        properties, see common.lua)
local out = {}
local parent = parent_of(argv.container)
out.parent = parent == nil or zfs.exists(parent)
if not zfs.exists(argv.container) then
    if parent ~= nil and out.parent then
        local value, source = zfs.get_prop(parent, argv.owner)
        if value ~= nil then
            out.owner_above = is_own(parent, source) and parent or source
        end
    end
    return out
end
out.exists = true
out.type = (zfs.get_prop(argv.container, "type"))
local value, source = zfs.get_prop(argv.container, argv.owner)
if is_own(argv.container, source) then
    out.owner = value
elseif value ~= nil then
    out.owner_above = source
end
if zfs.exists(argv.home) then
    out.home = true
    out.bare = out.owner == nil and is_bare(argv.home, argv.prefix)
    for child in zfs.list.children(argv.home) do
        local ours = is_empty_qube(child, argv.prefix) and (out.owner ~= nil
            or (zfs.get_prop(child, "canmount")) == "off")
        if not ours and next(own_properties(child, argv.prefix)) == nil then
            out.foreign = child
        end
    end
end
return out
