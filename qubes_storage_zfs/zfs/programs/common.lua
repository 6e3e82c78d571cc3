-- SPDX-License-Identifier: BSD-2-Clause
-- What the programs share.  Arguments arrive in argv; names in them were
-- checked by naming.py, for ZFS does not check them.
--
-- A program that refuses returns {errno=, step=, dataset=} and has changed
-- nothing.  zfs.get_prop has two results, hence the parentheses around it.
--
-- ZFS ends a program half way if its caller was killed, and keeps what it did
-- by then.  So a program makes the changes that belong together by
-- all_or_none(), and after them only such as may be missing for a while.

-- of the program that runs; several may run as one, see channel.py
local argv

local function refuse(errno, step, dataset)
    return {errno = errno, step = step, dataset = dataset}
end

-- What dsl_prop_get_dd() reports as the source of a property that came with
-- the dataset by `zfs receive` (ZPROP_SOURCE_VAL_RECVD).  A value that is set
-- later takes precedence over it, and zfs.sync.inherit hides it
-- (dsl_prop_set_sync_impl(), ZPROP_SRC_INHERITED).
local RECEIVED = "$recvd"

-- Whether a property with this source belongs to ds itself: it was set there,
-- or received with ds, and is not inherited.
local function is_own(ds, source)
    return source == ds or source == RECEIVED
end

-- The value of a user property of ds itself, nil if it has none or inherits
-- it; and whether it was received.  zfs.get_prop ends the program for what can
-- be no name of a property (zfs_prop_user()), such as one made of the name of a
-- dataset that is not ours.
local function own_property(ds, name)
    if string.find(name, "[^a-z0-9:+._-]") then
        return nil, false
    end
    local value, source = zfs.get_prop(ds, name)
    if is_own(ds, source) then
        return value, source == RECEIVED
    end
    return nil, false
end

-- The user properties of ds itself whose names start with prefix: name ->
-- value.
local function own_properties(ds, prefix)
    local found = {}
    for name, value, source in zfs.list.user_properties(ds) do
        if is_own(ds, source) and string.sub(name, 1, #prefix) == prefix then
            found[name] = value
        end
    end
    return found
end

-- The first of the rules, a list of {name, value} as a program gets it, that a
-- property of ds breaks: a table that says which and how, nil if none is.  The
-- source does not count: a value that was received is a value.
-- Second result: whether ds has one of them of its own, not inherited.
local function first_wrong(ds, rules)
    local own, number = false, 1
    local rule = rules["1"]
    while rule ~= nil do
        local value, source = zfs.get_prop(ds, rule.name)
        if value ~= rule.value then
            return {dataset = ds, property = rule.name, value = value,
                source = source, wanted = rule.value}, own
        end
        own = own or is_own(ds, source)
        number = number + 1
        rule = rules[string.format("%d", number)]
    end
    return nil, own
end

-- Number of the current generation of a volume, nil if it has none; whether
-- that is one whose content nobody keeps; and what was asked for when such a
-- one was made, a string.
local function current_number(qube, pointer)
    local value = own_property(qube, pointer)
    if value == nil then
        return nil, false
    end
    return tonumber(string.match(value, "^(%d+)")),
        string.match(value, " scratch") ~= nil,
        string.match(value, " scratch (%S+)$")
end

-- What the current generation of a volume that begins anew at each start was
-- made from; and the number of the revision that is no more than that.
local function begun_from(qube, pointer)
    local value = own_property(qube, pointer)
    local from, number = string.match(value or "", " from (%S+) ?r?(%d*)$")
    return from, tonumber(number)
end

-- The dataset that this one is in.
local function parent_of(ds)
    return string.match(ds, "^(.*)/[^/]*$")
end

-- The dataset where readonly=on is set that keeps ds from being written to;
-- nil if it can be.
local function read_only_by(ds)
    local value, source = zfs.get_prop(ds, "readonly")
    if value ~= "on" then
        return nil
    end
    -- of a received property the source is no dataset
    return string.match(source or "", "^%a") and source or ds
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

-- Numbers of the generations of one volume, of those in a list of datasets.
local function numbers_among(datasets, volume)
    local found = {}
    for _, dataset in ipairs(datasets) do
        local name, number = parse_generation(dataset)
        if name == volume then
            found[#found + 1] = number
        end
    end
    return found
end

local function children(qube)
    local found = {}
    for child in zfs.list.children(qube) do
        found[#found + 1] = child
    end
    return found
end

-- Numbers of the generations of one volume.
local function generations(qube, volume)
    return numbers_among(children(qube), volume)
end

-- The same as it was when first asked for any volume of the qube: for a
-- program that changes no other volume's, and asks before it changes its own.
-- To list is dear.
local listed = {}
local function generations_at_first(qube, volume)
    listed[qube] = listed[qube] or children(qube)
    return numbers_among(listed[qube], volume)
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

-- What is committed of a volume is written down beside its pointer, by what
-- makes it so, for those that ask whether they are clones of it: to list
-- snapshots is dear.  A change to be made, if it is not so written.
local function note_committed(changes, qube, property, snapshot)
    local last = snapshot and string.match(snapshot, "/([^/]*)$")
    if last == own_property(qube, property) then
        return
    elseif last then
        changes[#changes + 1] = {zfs.sync.set_prop, qube, property, last}
    else
        changes[#changes + 1] = {zfs.sync.inherit, qube, property}
    end
end

-- That snapshot; nil if nothing is committed.
local function noted_committed(qube, property)
    local last = own_property(qube, property)
    if last ~= nil and zfs.exists(qube .. "/" .. last) then
        return qube .. "/" .. last
    end
    return nil
end

local function is_clone_of(ds, snapshot)
    for clone in zfs.list.clones(snapshot) do
        if clone == ds then
            return true
        end
    end
    return false
end

-- Whether a zvol or a snapshot of one was never written to: it takes what a
-- blank one does.  Without argv.blank, which thresholds.py measures, none is.
local function is_unwritten(ds)
    return argv.blank ~= nil
        and (zfs.get_prop(ds, "logicalreferenced")) == argv.blank
end

-- Whether the current generation ds is another than the newest revision's,
-- or of another size.
local function moved_since(newest, ds, current)
    return newest == nil or newest.generation ~= current
        or (zfs.get_prop(ds, "volsize"))
            ~= (zfs.get_prop(newest.snapshot, "volsize"))
end

-- Bytes written to ds since a snapshot of it.  Counted from that very one:
-- somebody else may have made newer ones, and "written" counts from the newest
-- of all.  What is not in a transaction group that has ended is only seen by a
-- program that changes something.
local function written_since(ds, snapshot)
    local short = string.match(snapshot, "@(.*)$")
    return (zfs.get_prop(ds, "written@" .. short))
end

-- Whether a qube wrote to ds since a snapshot of it.  ZFS itself writes up to
-- argv.untouched bytes, see thresholds.py.
local function is_touched(ds, snapshot)
    return written_since(ds, snapshot) > argv.untouched
end

-- Whether it is known only when thresholds.py has measured that ds is changed:
-- a change may have written that much, and so may ZFS itself.
local function is_unsure(newest, ds, current)
    if argv.blank ~= nil or moved_since(newest, ds, current) then
        return false
    end
    local written = written_since(ds, newest.snapshot)
    return written > argv.doubtful and written <= argv.largest
end

local function changed_since(newest, ds, current)
    return moved_since(newest, ds, current)
        or is_touched(ds, newest.snapshot)
end

-- What a generation whose content nobody keeps was when it was made.
local function beginning(ds)
    return ds .. "@s1"
end

-- Whether anything at all was written to such a generation, if only by ZFS
-- itself: what is discarded is rolled back then, and no threshold can be wrong.
local function is_used(ds)
    return written_since(ds, beginning(ds)) > 0
end

-- Whether it is a clone of what is committed of argv.source; nil if there is
-- no such thing.
local function is_fresh(ds)
    local newest = argv.source
        and noted_committed(argv.source.qube, argv.source.committed)
    if newest then
        return is_clone_of(ds, newest)
    end
    return nil
end

-- Whether it can be taken back to what would be made now, of argv.source or of
-- argv.size, where it was made of `size`; `fresh` is what is_fresh() says.
local function is_usable(ds, size, fresh)
    if not zfs.exists(beginning(ds)) then
        return false
    elseif argv.source then
        return fresh == true
    end
    return argv.size == size
end

-- Whether there are snapshots besides its beginning, which goes with it.
local function has_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if snapshot ~= beginning(ds) or is_leaving(snapshot) then
            return true
        end
    end
    return false
end

-- Whether there are snapshots that are not on their way out.
local function has_lasting_snapshots(ds)
    for snapshot in zfs.list.snapshots(ds) do
        if not is_leaving(snapshot) then
            return true
        end
    end
    return false
end

-- Take a revision away.  With a living clone it stays until that goes, but
-- is a revision no more.
local function drop_revision(snapshot)
    zfs.sync.destroy{snapshot, defer=true}
    return 0
end

-- The revision that is no more than what its generation was made from is no
-- state that anybody left: it goes with the next one, not as one of those that
-- are kept.  A change to be made; and it is taken off the list.
local function drop_begun(changes, qube, pointer, list)
    local _, begun = begun_from(qube, pointer)
    for index, item in ipairs(list) do
        if item.number == begun and begun ~= argv.pinned then
            changes[#changes + 1] = {drop_revision, item.snapshot}
            table.remove(list, index)
            return
        end
    end
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

-- On a qube's dataset that this driver created, see adopt.lua.
local CREATED = "qubes-storage-zfs:created"

-- Whether a qube's dataset holds nothing and points to nothing, so that it can
-- be destroyed.
--
-- Such a dataset is never mounted: canmount is off, or it inherits that it has
-- no mount point.  One that is larger than any empty filesystem was mounted in
-- between.  A dataset that does not bear CREATED may be an administrator's with
-- a small file in it, also if canmount is off now; it counts as empty only if it
-- takes exactly what the qubes root takes.  After "zpool upgrade" an empty one
-- may take more than that, and stays.
local EMPTY_MOST = 131072
local function is_empty_qube(qube, prefix)
    for _ in zfs.list.children(qube) do
        return false
    end
    for _ in zfs.list.snapshots(qube) do
        return false
    end
    local size = (zfs.get_prop(qube, "logicalreferenced"))
    if next(own_properties(qube, prefix)) ~= nil
        or (zfs.get_prop(qube, "type")) ~= "filesystem"
        or size > EMPTY_MOST then
        return false
    end
    if (zfs.get_prop(qube, "canmount")) ~= "off" then
        local mountpoint, source = zfs.get_prop(qube, "mountpoint")
        if mountpoint ~= "none" or is_own(qube, source) then
            return false
        end
    end
    return own_property(qube, CREATED) ~= nil
        or size == (zfs.get_prop(parent_of(qube), "logicalreferenced"))
end

-- Whether there are zvols in the datasets below home, and no property of ours
-- says what they are: they were received without their properties.
local function is_bare(home, prefix)
    local bare = false
    for qube in zfs.list.children(home) do
        if next(own_properties(qube, prefix)) ~= nil then
            return false
        end
        for child in zfs.list.children(qube) do
            bare = bare or (zfs.get_prop(child, "type")) == "volume"
        end
    end
    return bare
end

