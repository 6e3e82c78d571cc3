-- SPDX-License-Identifier: BSD-2-Clause
-- Volumes whose content is discarded.  Read-only.
--
-- argv: container, qubes_root, claimed_by (property of the container), pool (its value;
--       nothing is told of another pool's volumes), prefix (of pointers),
--       holder (property)
-- gives: "<qube>/<volume>" -> the mark of the process that made the current
--        generation; "received" if it came with the dataset by `zfs receive`,
--        "" if there is none
local out = {}
if not zfs.exists(argv.qubes_root)
    or own_property(argv.container, argv.claim) ~= argv.pool then
    return out
end
for qube in zfs.list.children(argv.qubes_root) do
    local short = string.match(qube, "[^/]*$")
    for name in pairs(own_properties(qube, argv.prefix)) do
        local volume = string.sub(name, #argv.prefix + 1)
        local number, discarded = current_number(qube, name)
        if number ~= nil and discarded then
            local ds, mark, received = generation_name(qube, volume, number)
            if zfs.exists(ds) then
                mark, received = own_property(ds, argv.holder)
            end
            out[short .. "/" .. volume] = received and "received"
                or mark or ""
        end
    end
end
return out
