-- Write down what a zvol takes that nothing was written to yet: bytes of its
-- own objects, as such and on disk, which depend on the disks and on encryption
-- (6144 and 12288 to 41472 and 90112 were measured on single disks).
--
-- argv: dataset (such a zvol), home, blank (property), write (else only look)
-- gives: whether it is written down
local taken = string.format("%d %d",
    (zfs.get_prop(argv.dataset, "logicalreferenced")),
    (zfs.get_prop(argv.dataset, "referenced")))
if own_property(argv.home, argv.blank) == taken then
    return true
end
if not argv.write then
    return false
end
local errno = zfs.sync.set_prop(argv.home, argv.blank, taken)
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.home)
end
return true
