-- SPDX-License-Identifier: BSD-2-Clause
-- Return whether channel programs can clone (OpenZFS 2.4.0 and newer).
-- Read-only.
return zfs.sync.clone ~= nil
