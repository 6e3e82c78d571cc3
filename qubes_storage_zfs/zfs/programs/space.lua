-- SPDX-License-Identifier: BSD-2-Clause
-- Report the space below a dataset, as volumes there see it.  Read-only.
--
-- These two properties take quotas, reservations, parity and slop space into
-- account, unlike the figures of the zpool.
--
-- argv:
--   qubes_root  string  dataset
-- Returns {used, available}, both in bytes; an empty table if the dataset does
-- not exist.
if not zfs.exists(argv.qubes_root) then
    return {}
end
return {
    used = (zfs.get_prop(argv.qubes_root, "used")),
    available = (zfs.get_prop(argv.qubes_root, "available")),
}
