-- SPDX-License-Identifier: BSD-2-Clause
-- Bytes that would be free if a qube's volumes were but what they are now, and
-- bytes in generations that no volume has, but clones of them need.
--
-- argv: qube (dataset), prefix (of pointers), holder (property).  Read-only.
-- gives: revisions, removed
--
-- What a clone elsewhere shares would stay.
local out = {revisions = 0, removed = 0}
if not zfs.exists(argv.qube) then
    return out
end
for _, ds in ipairs(children(argv.qube)) do
    local volume, number = parse_generation(ds)
    local current = current_number(argv.qube, argv.prefix .. volume)
    local kind, what = "revisions", "used"
    if number == current then
        what = "usedbysnapshots"
    elseif own_property(ds, argv.holder) ~= nil and has_snapshots(ds)
        and (current == nil or not has_permanent_snapshots(ds)) then
        kind = "removed"
    end
    out[kind] = out[kind] + (zfs.get_prop(ds, what))
end
return out
