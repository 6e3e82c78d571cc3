-- SPDX-License-Identifier: BSD-2-Clause
-- The datasets of a zpool that are marked as the container of a pool.
-- Read-only.
--
-- argv: zpool, claimed_by (property)
-- gives: list of {dataset, claimed_by, root (the dataset whose key it is encrypted
--        with; absent if it is not encrypted), loaded (whether that key is)}
local out = {}

local function examine(ds)
    if (zfs.get_prop(ds, "type")) ~= "filesystem" then
        return
    end
    local claimed_by = own_property(ds, argv.claim)
    if claimed_by ~= nil then
        local item = {dataset = ds, claimed_by = claimed_by}
        local root = (zfs.get_prop(ds, "encryptionroot"))
        if root ~= nil and root ~= "" then
            item.root = root
            item.loaded = (zfs.get_prop(ds, "keystatus")) == "available"
        end
        out[#out + 1] = item
    end
    for child in zfs.list.children(ds) do
        examine(child)
    end
end

examine(argv.zpool)
return out
