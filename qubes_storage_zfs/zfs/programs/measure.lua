-- SPDX-License-Identifier: BSD-2-Clause
-- What a zvol takes that nothing was written to yet: bytes of its own objects,
-- as such and on disk, which depend on the disks and on encryption (6144 and
-- 12288 to 41472 and 90112 were measured).  Read-only.
--
-- argv: dataset (such a zvol)
-- gives: logical, referenced (bytes)
return {
    logical = (zfs.get_prop(argv.dataset, "logicalreferenced")),
    referenced = (zfs.get_prop(argv.dataset, "referenced")),
}
