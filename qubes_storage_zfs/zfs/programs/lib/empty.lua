-- SPDX-License-Identifier: BSD-2-Clause
-- What holds nothing: datasets of qubes, and containers.

-- On a qube's dataset that this driver created, see make_current.lua.
local CREATED = "qubes-storage-zfs:created"

-- Whether a qube's dataset holds nothing and points to nothing, so that it can
-- be destroyed.
--
-- Such a dataset is never mounted: canmount is off, or it inherits that it has
-- no mount point.  One that is larger than any empty filesystem was mounted in
-- between.  A dataset that does not bear CREATED may be an administrator's with
-- a small file in it, also if canmount is off now; it counts as empty only if it
-- takes exactly what the qubes root takes.  After "zpool upgrade" an empty one
-- may take more than that, and stays.
local EMPTY_MOST = 131072
local function is_empty_qube(qube, prefix)
    for _ in zfs.list.children(qube) do
        return false
    end
    for _ in zfs.list.snapshots(qube) do
        return false
    end
    local size = (zfs.get_prop(qube, "logicalreferenced"))
    if next(own_properties(qube, prefix)) ~= nil
        or (zfs.get_prop(qube, "type")) ~= "filesystem"
        or size > EMPTY_MOST then
        return false
    end
    if (zfs.get_prop(qube, "canmount")) ~= "off" then
        local mountpoint, source = zfs.get_prop(qube, "mountpoint")
        if mountpoint ~= "none" or is_own(qube, source) then
            return false
        end
    end
    return own_property(qube, CREATED) ~= nil
        or size == (zfs.get_prop(parent_of(qube), "logicalreferenced"))
end

-- Whether there are zvols in the datasets below qubes_root, and no property of ours
-- says what they are: they were received without their properties.
local function is_bare(qubes_root, prefix)
    local bare = false
    for qube in zfs.list.children(qubes_root) do
        if next(own_properties(qube, prefix)) ~= nil then
            return false
        end
        for child in zfs.list.children(qube) do
            bare = bare or (zfs.get_prop(child, "type")) == "volume"
        end
    end
    return bare
end

