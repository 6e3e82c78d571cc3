-- SPDX-License-Identifier: BSD-2-Clause
-- Whether a dataset is encrypted, by which root's key, and whether that is
-- loaded.  Read-only; right from OpenZFS 2.3.3 on.
--
-- argv: dataset
-- gives: exists; root (the dataset whose key it is, absent if it is not
--        encrypted); loaded; format (of the key: passphrase, raw or hex);
--        read_only_by (dataset where readonly=on is set, absent if it is not)
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
