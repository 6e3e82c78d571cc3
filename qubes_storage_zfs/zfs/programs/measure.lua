-- Write down what a zvol takes that nothing was written to yet: bytes of its
-- own objects, which depend on the sectors of the disks and on encryption
-- (6144 to 41472 were measured).
--
-- argv: dataset (such a zvol), home, blank (property), write (else only look)
-- gives: whether it is written down
local taken = string.format("%d",
    (zfs.get_prop(argv.dataset, "logicalreferenced")))
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
