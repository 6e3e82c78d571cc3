-- What no pointer names and holds no snapshot.  Read-only.
--
-- argv: home, or qube for that one alone; prefix (of pointers); holder
--       (property)
-- gives: datasets (list of {name, guid, holder}); empty (qubes' datasets
--       without children); stuck (count of unreachable generations that a
--       clone or another's snapshot keeps)
local out = {datasets = {}, empty = {}, stuck = 0}

local function look(qube)
    local children, any = {}, false
    for child in zfs.list.children(qube) do
        any = true
        children[#children + 1] = child
    end
    if not any then
        out.empty[#out.empty + 1] = qube
    end
    for _, child in ipairs(children) do
        local volume, number = parse_generation(child)
        local current = current_number(qube, argv.prefix .. volume)
        if number ~= current then
            if not has_snapshots(child) then
                out.datasets[#out.datasets + 1] = {
                    name = child,
                    guid = (zfs.get_prop(child, "guid")),
                    holder = own_property(child, argv.holder),
                }
            elseif current == nil then
                out.stuck = out.stuck + 1
            end
        end
    end
end

if argv.qube then
    if zfs.exists(argv.qube) then
        look(argv.qube)
    end
else
    for qube in zfs.list.children(argv.home) do
        look(qube)
    end
end
return out
