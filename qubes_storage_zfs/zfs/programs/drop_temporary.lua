-- SPDX-License-Identifier: BSD-2-Clause
-- Drop a snapshot that take_temporary.lua took.  While a clone needs it, ZFS
-- only marks it for deferred destruction.
--
-- argv:
--   snapshot  string
-- Returns nil.
drop_revision(argv.snapshot)
return nil
