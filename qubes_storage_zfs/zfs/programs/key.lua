-- SPDX-License-Identifier: BSD-2-Clause
-- Report whether a dataset is encrypted, and whether the key is loaded.
-- Read-only.  ZFS returns correct values from OpenZFS 2.3.3 on.
--
-- argv:
--   dataset  string
-- Returns an empty table if the dataset does not exist, or:
--   exists        true
--   root          string: the encryption root; absent if not encrypted
--   loaded        boolean: the key is loaded
--   format        string: "passphrase", "raw" or "hex"
--   read_only_by  string: the dataset whose readonly=on is in force; absent if
--                 the dataset is writable
local ds = argv.dataset
if not zfs.exists(ds) then
    return {}
end
local out = {exists = true, read_only_by = read_only_by(ds)}
local root = (zfs.get_prop(ds, "encryptionroot"))
if root ~= nil and root ~= "" then
    out.root = root
    out.loaded = (zfs.get_prop(ds, "keystatus")) == "available"
    out.format = (zfs.get_prop(ds, "keyformat"))
end
return out
