-- SPDX-License-Identifier: BSD-2-Clause
-- Space below a dataset as the volumes there see it: quotas, reservations,
-- parity and slop are in these two, unlike in the zpool's own figures.
--
-- argv: qubes_root.  Read-only.  gives: used, available (bytes), absent if missing
if not zfs.exists(argv.qubes_root) then
    return {}
end
return {
    used = (zfs.get_prop(argv.qubes_root, "used")),
    available = (zfs.get_prop(argv.qubes_root, "available")),
}
