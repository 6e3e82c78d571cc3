-- SPDX-License-Identifier: BSD-2-Clause
-- List garbage: this driver's generations that no pointer needs and that have
-- no snapshot, or only one that a single clone needs (see lib/promotion.lua).
-- Read-only.
--
-- A generation is this driver's if it has the holder mark.  lzc_create() and
-- lzc_clone() set the mark one transaction group after they create the zvol.
-- So a generation without a mark is this driver's as well if its name is one
-- that naming.py makes and nothing was ever written to it.
--
-- argv:
--   qubes_root  string  dataset
--   qube        string  dataset of the only qube to check; absent: all qubes
--   prefix      string  of pointers
--   holder      string  property: the holder mark
--   unmodified, blank   bytes, see thresholds.py
-- Returns:
--   datasets  list of {name, guid, holder, bookmarks}; holder is the mark, or
--             "received", which names no process, if the mark was received with
--             the dataset; bookmarks must be destroyed first
--   unsure    string: a generation that is this driver's if it is blank, which
--             thresholds.py must measure first; absent if there is none
--   empty     list: qubes' datasets that are empty
local out = {datasets = {}, empty = {}}

-- A blank zvol never has more logical bytes (41472 were measured).
local BLANK_MOST = 131072

local function is_unmodified_clone(ds)
    local origin = (zfs.get_prop(ds, "origin"))
    local source = string.match(origin, "^(.*)@")
    return own_property(source, argv.holder) ~= nil
        and (zfs.get_prop(ds, "written")) <= argv.unmodified
        and (zfs.get_prop(ds, "logicalreferenced"))
            == (zfs.get_prop(origin, "logicalreferenced"))
end

-- Return whether naming.py can have made this name of a volume.
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
            local has_any = has_snapshots(child)
            if not has_any and is_ours(child, number, mark)
                or has_any and mark ~= nil and sole_clone(child) ~= nil then
                out.datasets[#out.datasets + 1] = {
                    name = child,
                    guid = (zfs.get_prop(child, "guid")),
                    -- the process that the mark names did not receive it
                    holder = received and "received" or mark,
                    bookmarks = has_any and bookmarks_of(child) or {},
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
