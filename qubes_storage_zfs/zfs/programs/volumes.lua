-- SPDX-License-Identifier: BSD-2-Clause
-- Every volume below home: "<qube>/<volume>" -> value of its pointer.
--
-- argv: home, prefix (of pointers).  Read-only; user properties only, which
-- cost a third of native ones.
local out = {}
if not zfs.exists(argv.home) then
    return out
end
for qube in zfs.list.children(argv.home) do
    local short = string.sub(qube, #argv.home + 2)
    for name, value in pairs(own_properties(qube, argv.prefix)) do
        out[short .. "/" .. string.sub(name, #argv.prefix + 1)] = value
    end
end
return out
