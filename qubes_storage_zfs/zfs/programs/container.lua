-- SPDX-License-Identifier: BSD-2-Clause
-- Report what is at the place of a pool's container.  Read-only.
--
-- argv:
--   container   string  dataset
--   qubes_root  string  dataset
--   claim       string  property: the name of the pool
--   prefix      string  of all our properties
-- Returns:
--   parent         boolean: the dataset above the container exists
--   exists         boolean: the container exists
--   qubes_root     boolean: the qubes root exists
--   type           string: ZFS's type of the container
--   claimed_by     string: the pool that has claimed the container
--   claimed_above  string: a dataset above it that a pool has claimed
--   foreign        string: a child of the qubes root that is not the dataset of
--                  a qube of this driver; absent if there is none
--   bare           boolean: no pool has claimed the container, and it was
--                  received without its properties, see is_bare()
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
        local ours = is_empty_qube(child, argv.prefix)
            and (out.claimed_by ~= nil
                or (zfs.get_prop(child, "canmount")) == "off")
        if not ours and next(own_properties(child, argv.prefix)) == nil then
            out.foreign = child
        end
    end
end
return out
