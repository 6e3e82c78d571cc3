-- SPDX-License-Identifier: BSD-2-Clause
-- List the datasets of all qubes.  Read-only.
--
-- argv:
--   qubes_root  string  dataset
-- Returns a list of names; empty if the qubes root does not exist.
if not zfs.exists(argv.qubes_root) then
    return {}
end
return children(argv.qubes_root)
