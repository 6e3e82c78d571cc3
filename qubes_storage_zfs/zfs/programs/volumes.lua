-- SPDX-License-Identifier: BSD-2-Clause
-- List all volumes of a pool.  Read-only.
--
-- Reads user properties only, which are three times as fast as native ones.
--
-- argv:
--   qubes_root  string  dataset
--   prefix      string  of pointers
-- Returns a table "<qube>/<volume>" -> value of the pointer.
local out = {}
if not zfs.exists(argv.qubes_root) then
    return out
end
for qube in zfs.list.children(argv.qubes_root) do
    local short = string.sub(qube, #argv.qubes_root + 2)
    for name, value in pairs(own_properties(qube, argv.prefix)) do
        out[short .. "/" .. string.sub(name, #argv.prefix + 1)] = value
    end
end
return out
