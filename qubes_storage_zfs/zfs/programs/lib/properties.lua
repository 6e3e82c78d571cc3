-- SPDX-License-Identifier: BSD-2-Clause
-- Properties of datasets, and what else every program uses.
--
-- Arguments arrive in argv; names in them were checked by naming.py, because
-- ZFS does not check them.  A program that refuses returns {errno=, step=,
-- dataset=} and has changed nothing.  zfs.get_prop has two results, hence the
-- parentheses around it.
--
-- The files in this folder are put before every program, in the order that
-- zcp.py lists; each uses only those before it.

-- of the program that runs; several may run as one, see zcp.py
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
    local list = {}
    for name, value, source in zfs.list.user_properties(ds) do
        if is_own(ds, source) and string.sub(name, 1, #prefix) == prefix then
            list[name] = value
        end
    end
    return list
end

-- The first of the rules, a list of {name, value} as a program gets it, that a
-- property of ds breaks: a table that says which and how, nil if none is.  The
-- source does not count: a value that was received is a value.
-- Second result: whether ds has one of them of its own, not inherited.
local function first_violation(ds, rules)
    local own, number = false, 1
    local rule = rules["1"]
    while rule ~= nil do
        local value, source = zfs.get_prop(ds, rule.name)
        if value ~= rule.value then
            return {dataset = ds, property = rule.name, value = value,
                source = source, required = rule.value}, own
        end
        own = own or is_own(ds, source)
        number = number + 1
        rule = rules[string.format("%d", number)]
    end
    return nil, own
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

