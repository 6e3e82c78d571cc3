-- What the programs share.  Arguments arrive in argv; names in them were
-- checked by layout.py, for ZFS does not check them.
--
-- A program that refuses returns {errno=, step=, dataset=} and has changed
-- nothing.  zfs.get_prop has two results, hence the parentheses around it.
--
-- ZFS ends a program half way if its caller was killed, and keeps what it did
-- by then.  So a program makes the changes that belong together by
-- all_or_none(), and after them only such as may be missing for a while.

local argv = (...).argv

local function refuse(errno, step, dataset)
    return {errno = errno, step = step, dataset = dataset}
end

-- The value of a user property set on ds itself, not inherited.
local function own_property(ds, name)
    local value, source = zfs.get_prop(ds, name)
    if source == ds then
        return value
    end
    return nil
end

-- Number of the current generation of a volume, nil if it has none; and
-- whether that is one whose content nobody keeps.
local function current_number(qube, pointer)
    local value = own_property(qube, pointer)
    if value == nil then
        return nil, false
    end
    return tonumber(string.match(value, "^(%d+)")),
        string.match(value, " scratch$") ~= nil
end

local function generation_name(qube, volume, number)
    if number == 0 then
        return qube .. "/" .. volume
    end
    return qube .. "/" .. volume .. "." .. string.format("%d", number)
end

-- Volume and number in the last part of a generation's name.
local function parse_generation(dataset)
    local last = string.match(dataset, "/([^/]*)$")
    local volume, number = string.match(last, "^([^.]+)%.([1-9]%d*)$")
    if volume == nil then
        return last, 0
    end
    return volume, tonumber(number)
end

-- Numbers of the generations of one volume.
local function generations(qube, volume)
    local found = {}
    for child in zfs.list.children(qube) do
        local name, number = parse_generation(child)
        if name == volume then
            found[#found + 1] = number
        end
    end
    return found
end

-- Whether a snapshot is on its way out: it is no revision any more, and goes
-- with its last clone.
local function is_leaving(snapshot)
    return (zfs.get_prop(snapshot, "defer_destroy")) == "on"
end

-- Revisions of a volume in the generations `numbers`: list of {number=,
-- generation=, snapshot=}, sorted; the highest number ever seen among them;
-- and what a crash left of freeze.lua, a list of the same without number.
local function revisions(qube, volume, numbers)
    local found, highest, frozen = {}, 0, {}
    for _, generation in ipairs(numbers) do
        local ds = generation_name(qube, volume, generation)
        for snapshot in zfs.list.snapshots(ds) do
            local kind, digits = string.match(snapshot, "@([rx])([1-9]%d*)$")
            local number = kind == "r" and tonumber(digits) or nil
            if number ~= nil and number > highest then
                highest = number
            end
            if kind ~= nil and not is_leaving(snapshot) then
                local list = number and found or frozen
                list[#list + 1] = {
                    number = number,
                    generation = generation,
                    snapshot = snapshot,
                }
            end
        end
    end
    table.sort(found, function(a, b) return a.number < b.number end)
    return found, highest, frozen
end

-- Whether a zvol or a snapshot of one was never written to.  What its own
-- objects take, measure.lua has written down for the dataset of all qubes.
local function is_unwritten(ds)
    local home = string.match(ds, "^(.*)/[^/]*/[^/]*$")
    local blank = own_property(home, argv.blank)
    return blank ~= nil
        and (zfs.get_prop(ds, "logicalreferenced")) == tonumber(blank)
end

-- The most bytes that are written to a zvol which nothing was written to: its
-- intent log is ended and begun anew when it is opened for the first time
-- after it was cloned or imported, or its key was loaded.  1024, or 8192 with
-- 4 KiB sectors or encrypted; the smallest write or discard makes 12288, or
-- 57344 and more (measured, 2.3.9 and 2.4.4).
local UNTOUCHED = 8192

-- Whether the current generation ds is another than the newest revision's,
-- or of another size.
local function moved_since(newest, ds, current)
    return newest == nil or newest.generation ~= current
        or (zfs.get_prop(ds, "volsize"))
            ~= (zfs.get_prop(newest.snapshot, "volsize"))
end

-- Whether its content may differ, too.  Measured from that very snapshot:
-- somebody else may have made newer ones, and "written" counts from the
-- newest of all.
local function changed_since(newest, ds, current)
    if moved_since(newest, ds, current) then
        return true
    end
    local short = string.match(newest.snapshot, "@(.*)$")
    return (zfs.get_prop(ds, "written@" .. short)) > UNTOUCHED
end

local function has_snapshots(ds)
    for _ in zfs.list.snapshots(ds) do
        return true
    end
    return false
end

-- Take a revision away.  With a living clone it stays until that goes, but
-- is a revision no more.
local function drop_revision(snapshot)
    zfs.sync.destroy{snapshot, defer=true}
    return 0
end

local unpack = table.unpack
local function make_changes(list)
    for index = 1, #list do
        local change = list[index]
        local errno, failed = change[1](unpack(change, 2))
        if errno ~= 0 then
            return errno, failed or change
        end
    end
    return 0
end

-- Make all changes in the list, each {function, arguments ...} and giving
-- an errno, or none if the caller was killed.  One that fails ends it;
-- gives its errno and the change.
--
-- ZFS looks at every hundredth instruction whether to end the program, and a
-- coroutine counts its own (zcp_lua_counthook(), lua_newthread()).  Four
-- changes take less than a hundred, drop_revision() included, and so do four
-- coroutines of four; those are made before any of them runs.
local function all_or_none(list)
    while #list > 4 do
        local groups = {}
        for first = 1, #list, 4 do
            local group = {}
            for index = first, first + 3 do
                group[#group + 1] = list[index]
            end
            groups[#groups + 1] = {coroutine.wrap(make_changes), group}
        end
        list = groups
    end
    return coroutine.wrap(make_changes)(list)
end

-- A qube's dataset that holds nothing and points to nothing.  Ours cannot be
-- mounted; if the machine stopped before that was set, which ZFS does a
-- transaction group later, nothing was put into it: it is as the one above.
local function is_empty_qube(qube, prefix)
    for _ in zfs.list.children(qube) do
        return false
    end
    for name, _, source in zfs.list.user_properties(qube) do
        if source == qube and string.sub(name, 1, #prefix) == prefix then
            return false
        end
    end
    local home = string.match(qube, "^(.*)/[^/]*$")
    return (zfs.get_prop(qube, "type")) == "filesystem"
        and ((zfs.get_prop(qube, "canmount")) == "off"
            or (zfs.get_prop(qube, "logicalreferenced"))
                == (zfs.get_prop(home, "logicalreferenced")))
end

-- The content is committed, or nobody's any more: a change to be made.
local function clear_started(changes, qube, started)
    if own_property(qube, started) ~= nil then
        changes[#changes + 1] = {zfs.sync.inherit, qube, started}
    end
end

-- Destroy a generation that nothing needs.  What the janitor must look at then
-- is added to `left`: the generation, if somebody holds it open; or what it
-- was cloned from, if a snapshot was kept for it alone.  Gives the errno.
local function destroy_generation(ds, left)
    local origin = (zfs.get_prop(ds, "origin"))
    local errno = zfs.sync.destroy(ds)
    if errno ~= 0 then
        left[#left + 1] = ds
    elseif origin ~= nil and not zfs.exists(origin) then
        left[#left + 1] = string.match(origin, "^(.*)@")
    end
    return errno
end

-- Of the revisions in `list`, oldest first, keep the newest `keep` besides
-- the committed one (none at all if keep is -1), and nothing that is
-- `frozen`.  A generation that is not current and thereby lost its last
-- snapshot goes too; for `left` see destroy_generation().
local function prune(qube, volume, list, frozen, current, keep, left)
    local emptied = {}
    local function drop(item)
        drop_revision(item.snapshot)
        emptied[item.generation] = true
    end
    for _, item in ipairs(frozen) do
        drop(item)
    end
    for index = 1, #list - 1 - keep do
        drop(list[index])
    end
    for generation in pairs(emptied) do
        local ds = generation_name(qube, volume, generation)
        if generation ~= current and not has_snapshots(ds) then
            destroy_generation(ds, left)
        end
    end
end

