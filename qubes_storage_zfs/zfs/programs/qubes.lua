-- SPDX-License-Identifier: BSD-2-Clause
-- The datasets of all qubes.
--
-- argv: home.  Read-only.  gives: list of names
if not zfs.exists(argv.home) then
    return {}
end
return children(argv.home)
