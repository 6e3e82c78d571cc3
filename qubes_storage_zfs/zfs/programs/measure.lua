-- SPDX-License-Identifier: BSD-2-Clause
-- Measure a blank zvol: the space that its own objects take.  Read-only.
--
-- It depends on the disks and on encryption: 6144 logical and 12288 referenced
-- bytes to 41472 and 90112 bytes were measured.
--
-- argv:
--   dataset  string: a zvol that nothing was written to
-- Returns {logical, referenced}, both in bytes.
return {
    logical = (zfs.get_prop(argv.dataset, "logicalreferenced")),
    referenced = (zfs.get_prop(argv.dataset, "referenced")),
}
