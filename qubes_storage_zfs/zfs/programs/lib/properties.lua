-- SPDX-License-Identifier: BSD-2-Clause
-- Properties of datasets, and what every program uses.
--
-- Arguments arrive in `argv`.  ZFS does not check the names of datasets in
-- them; store/naming.py has checked them.  A program that refuses changes
-- nothing, unless its header says otherwise, and returns {errno, step (what
-- failed), dataset}.  zfs.get_prop returns two results; parentheses around a
-- call drop the second.
--
-- zcp.py puts the files of this folder before every program, in the order of
-- its _ORDER.  Each file uses only those before it.

-- The arguments of the program that runs.  Several programs may run as one, and
-- zcp.py sets this before each.
local argv

local function refuse(errno, step, dataset)
    return {errno = errno, step = step, dataset = dataset}
end

-- The source that dsl_prop_get_dd() reports for a property that was received
-- with the dataset (ZPROP_SOURCE_VAL_RECVD).  A value that is set later
-- overrides it, and zfs.sync.inherit hides it (dsl_prop_set_sync_impl(),
-- ZPROP_SRC_INHERITED).
local RECEIVED = "$recvd"

-- Return whether a property with this source is ds's own: set on ds or received
-- with ds, not inherited.
local function is_own(ds, source)
    return source == ds or source == RECEIVED
end

-- Return the value of a user property of ds itself, nil if it has none or
-- inherits it, and whether it was received.  zfs.get_prop ends the program if
-- the name is not valid (zfs_prop_user()).  A name made from a foreign
-- dataset's name may not be, so it is checked first.
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

-- Return the user properties of ds itself whose names start with `prefix`, as a
-- table name -> value.
local function own_properties(ds, prefix)
    local list = {}
    for name, value, source in zfs.list.user_properties(ds) do
        if is_own(ds, source) and string.sub(name, 1, #prefix) == prefix then
            list[name] = value
        end
    end
    return list
end

-- Return the first of `rules` that ds breaks, nil if it breaks none, and
-- whether ds has one of these properties of its own.
-- rules: a list of {name, value} as it arrives in argv.  Returns {dataset,
-- property, value, source, required}.  A received value counts like any other.
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

-- Return the dataset whose readonly=on keeps ds from being written to; nil if
-- ds is writable.
local function read_only_by(ds)
    local value, source = zfs.get_prop(ds, "readonly")
    if value ~= "on" then
        return nil
    end
    -- the source of a received property is not a dataset
    return string.match(source or "", "^%a") and source or ds
end

