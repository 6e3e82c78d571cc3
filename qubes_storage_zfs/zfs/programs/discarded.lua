-- SPDX-License-Identifier: BSD-2-Clause
-- List the disposable volumes of a pool.  Read-only.
--
-- argv:
--   container   string  dataset
--   qubes_root  string  dataset
--   claim       string  property of the container: the name of the pool
--   pool        string  value of that property; another pool's volumes are not
--                       listed
--   prefix      string  of pointers
--   holder      string  property: the holder mark
-- Returns a table "<qube>/<volume>" -> holder mark of the current generation;
-- "received" if the mark was received with the dataset, "" if there is none.
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
