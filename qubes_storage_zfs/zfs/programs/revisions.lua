-- Bytes that would be free if a qube's volumes were but what they are now.
--
-- argv: qube (dataset), prefix (of pointers).  Read-only.  gives: bytes
--
-- What a clone elsewhere shares would stay.
local total = 0
if not zfs.exists(argv.qube) then
    return total
end
for _, ds in ipairs(children(argv.qube)) do
    local volume, number = parse_generation(ds)
    local current = current_number(argv.qube, argv.prefix .. volume)
    local what = number == current and "usedbysnapshots" or "used"
    total = total + (zfs.get_prop(ds, what))
end
return total
