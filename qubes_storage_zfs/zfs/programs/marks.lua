-- SPDX-License-Identifier: BSD-2-Clause
-- List the datasets of a zpool that pools have claimed as containers.
-- Read-only.
--
-- argv:
--   zpool  string
--   claim  string  property: the name of the pool
-- Returns a list of {dataset, claimed_by (name of the pool), root (the
-- encryption root, absent if not encrypted), loaded (boolean: its key is
-- loaded)}.
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
