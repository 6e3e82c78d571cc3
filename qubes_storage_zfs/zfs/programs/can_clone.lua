-- SPDX-License-Identifier: BSD-2-Clause
-- Whether this module's channel programs can clone.  Read-only.
return zfs.sync.clone ~= nil
