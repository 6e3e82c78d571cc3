-- SPDX-License-Identifier: BSD-2-Clause
-- Count the bytes that a qube's revisions and removed volumes use.  Read-only.
--
-- argv:
--   qube    string  dataset of the qube
--   prefix  string  of pointers
--   holder  string  property: the holder mark
-- Returns:
--   revisions  bytes that would be free if each volume had its current content
--              only
--   removed    bytes in generations of removed volumes, which clones need
--
-- Blocks that a clone of another qube shares would not be free.
local out = {revisions = 0, removed = 0}
if not zfs.exists(argv.qube) then
    return out
end
for _, ds in ipairs(children(argv.qube)) do
    local volume, number = parse_generation(ds)
    local current = current_number(argv.qube, argv.prefix .. volume)
    local kind, property = "revisions", "used"
    if number == current then
        property = "usedbysnapshots"
    elseif own_property(ds, argv.holder) ~= nil and has_snapshots(ds)
        and (current == nil or not has_permanent_snapshots(ds)) then
        kind = "removed"
    end
    out[kind] = out[kind] + (zfs.get_prop(ds, property))
end
return out
