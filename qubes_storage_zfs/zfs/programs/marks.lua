-- SPDX-License-Identifier: BSD-2-Clause
-- The datasets of a zpool that are marked as the container of a pool.
-- Read-only.
--
-- argv: zpool, owner (property)
-- gives: list of {dataset, owner, root (the dataset whose key it is encrypted
--        with; absent if it is not encrypted), loaded (whether that key is)}
local out = {}

local function look(ds)
    if (zfs.get_prop(ds, "type")) ~= "filesystem" then
        return
    end
    local owner = own_property(ds, argv.owner)
    if owner ~= nil then
        local item = {dataset = ds, owner = owner}
        local root = (zfs.get_prop(ds, "encryptionroot"))
        if root ~= nil and root ~= "" then
            item.root = root
            item.loaded = (zfs.get_prop(ds, "keystatus")) == "available"
        end
        out[#out + 1] = item
    end
    for child in zfs.list.children(ds) do
        look(child)
    end
end

look(argv.zpool)
return out
