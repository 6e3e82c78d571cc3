-- SPDX-License-Identifier: BSD-2-Clause
-- What is where a pool's container should be.  Read-only.
--
-- argv: container, qubes_root, claimed_by (property), prefix (of all our properties)
-- gives: parent, exists, qubes_root (booleans); type; claimed_by; claimed_above (a dataset
--        above that some pool has claimed); foreign (a child of qubes_root that is
--        not the dataset of a qube of ours, absent if there is none); bare (of
--        a container without claimed_by: whether it was received without its
--        properties, see common.lua)
local out = {}
local parent = parent_of(argv.container)
out.parent = parent == nil or zfs.exists(parent)
if not zfs.exists(argv.container) then
    if parent ~= nil and out.parent then
        local value, source = zfs.get_prop(parent, argv.claim)
        if value ~= nil then
            out.claimed_above = is_own(parent, source) and parent or source
        end
    end
    return out
end
out.exists = true
out.type = (zfs.get_prop(argv.container, "type"))
local value, source = zfs.get_prop(argv.container, argv.claim)
if is_own(argv.container, source) then
    out.claimed_by = value
elseif value ~= nil then
    out.claimed_above = source
end
if zfs.exists(argv.qubes_root) then
    out.qubes_root = true
    out.bare = out.claimed_by == nil and is_bare(argv.qubes_root, argv.prefix)
    for child in zfs.list.children(argv.qubes_root) do
        local ours = is_empty_qube(child, argv.prefix) and (out.claimed_by ~= nil
            or (zfs.get_prop(child, "canmount")) == "off")
        if not ours and next(own_properties(child, argv.prefix)) == nil then
            out.foreign = child
        end
    end
end
return out
