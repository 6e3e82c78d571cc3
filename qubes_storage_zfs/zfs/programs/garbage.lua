-- SPDX-License-Identifier: BSD-2-Clause
-- What no pointer names, holds no snapshot and is ours; and what one clone of a
-- volume alone keeps, see promotion.lua.  Read-only.
--
-- Ours is what bears our mark.  The mark is set in the call that makes a
-- dataset but lands a transaction group later, so what bears none is ours
-- too if it has such a name as we give and nothing was ever written to it.
--
-- argv: qubes_root, or qube for that one alone; prefix (of pointers); holder
--       (property); untouched, blank (bytes, see thresholds.py)
-- gives: datasets (list of {name, guid, holder, bookmarks that must go first};
--       holder is "received", which names no process, if the mark came with
--       the dataset by `zfs receive`); unsure (one that may be ours, which
--       thresholds.py tells when it has measured, absent if there is none);
--       empty (qubes' datasets that hold nothing)
local out = {datasets = {}, empty = {}}

-- More than this no blank zvol takes (41472 logical bytes were measured).
local BLANK_MOST = 131072

local function is_unmodified_clone(ds)
    local origin = (zfs.get_prop(ds, "origin"))
    local source = string.match(origin, "^(.*)@")
    return own_property(source, argv.holder) ~= nil
        and (zfs.get_prop(ds, "written")) <= argv.unmodified
        and (zfs.get_prop(ds, "logicalreferenced"))
            == (zfs.get_prop(origin, "logicalreferenced"))
end

-- Whether naming.py could have given a volume this name.
local function is_volume_name(volume)
    return string.match(volume, "^[a-z0-9][a-z0-9_-]*$") ~= nil
end

local function is_ours(ds, number, mark)
    if mark ~= nil then
        return true
    end
    if (zfs.get_prop(ds, "type")) ~= "volume" then
        return false
    end
    if (zfs.get_prop(ds, "origin")) == nil then
        if argv.blank == nil
            and (zfs.get_prop(ds, "logicalreferenced")) <= BLANK_MOST then
            out.unsure = ds
        end
        return is_unwritten(ds)
    end
    return number > 0 and is_unmodified_clone(ds)
end

local function examine(qube)
    local list = children(qube)
    local short = string.match(qube, "/([^/]*)$")
    if #list == 0 and string.match(short, "^[A-Za-z0-9][A-Za-z0-9_.-]*$")
        and is_empty_qube(qube, argv.prefix) then
        out.empty[#out.empty + 1] = qube
    end
    for _, child in ipairs(list) do
        local volume, number = parse_generation(child)
        local current = current_number(qube, argv.prefix .. volume)
        if number ~= current and is_volume_name(volume) then
            local mark, received = own_property(child, argv.holder)
            local kept = has_snapshots(child)
            if not kept and is_ours(child, number, mark)
                or kept and mark ~= nil and sole_clone(child) ~= nil then
                out.datasets[#out.datasets + 1] = {
                    name = child,
                    guid = (zfs.get_prop(child, "guid")),
                    -- the process that it names did not receive it
                    holder = received and "received" or mark,
                    bookmarks = kept and bookmarks_of(child) or {},
                }
            end
        end
    end
end

if argv.qube then
    if zfs.exists(argv.qube) then
        examine(argv.qube)
    end
else
    for qube in zfs.list.children(argv.qubes_root) do
        examine(qube)
    end
end
return out
