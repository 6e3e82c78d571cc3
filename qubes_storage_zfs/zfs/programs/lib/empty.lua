-- SPDX-License-Identifier: BSD-2-Clause
-- Checks for qubes' datasets that are empty and containers without properties.

-- Property of each qube's dataset that this driver created; make_current.lua
-- sets it.
local CREATED = "qubes-storage-zfs:created"

-- Return whether a qube's dataset can be destroyed: it has no child, snapshot,
-- pointer or file.
--
-- A qube's dataset is never mounted: it has canmount=off, or inherits
-- mountpoint=none.  If it is larger than an empty filesystem can be, it was
-- mounted at some time and may have files.  If it does not have the property
-- CREATED, an administrator may have created it, put a small file in it and set
-- canmount=off.  Then it counts as empty only if it has exactly the size of the
-- qubes root.  After "zpool upgrade" an empty one can be larger than that; it
-- is kept.
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

-- Return whether the datasets below qubes_root have zvols, but none of our
-- properties: they were received without properties.
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

