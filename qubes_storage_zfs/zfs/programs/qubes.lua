-- SPDX-License-Identifier: BSD-2-Clause
-- The datasets of all qubes.
--
-- argv: qubes_root.  Read-only.  gives: list of names
if not zfs.exists(argv.qubes_root) then
    return {}
end
return children(argv.qubes_root)
