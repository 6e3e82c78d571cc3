-- SPDX-License-Identifier: BSD-2-Clause
-- Every volume below qubes_root: "<qube>/<volume>" -> value of its pointer.
--
-- argv: qubes_root, prefix (of pointers).  Read-only; user properties only, which
-- cost a third of native ones.
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
