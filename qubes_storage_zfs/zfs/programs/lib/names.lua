-- SPDX-License-Identifier: BSD-2-Clause
-- Names of generations, and the generations in a qube's dataset.

-- Return the parent of a dataset; nil for a zpool.
local function parent_of(ds)
    return string.match(ds, "^(.*)/[^/]*$")
end

local function generation_name(qube, volume, number)
    if number == 0 then
        return qube .. "/" .. volume
    end
    return qube .. "/" .. volume .. "." .. string.format("%d", number)
end

-- Return volume and number from the last component of a generation's name.
local function parse_generation(dataset)
    local last = string.match(dataset, "/([^/]*)$")
    local volume, number = string.match(last, "^([^.]+)%.([1-9]%d*)$")
    if volume == nil then
        return last, 0
    end
    return volume, tonumber(number)
end

-- Return the numbers of the generations of `volume` in a list of datasets.
local function numbers_among(datasets, volume)
    local list = {}
    for _, dataset in ipairs(datasets) do
        local name, number = parse_generation(dataset)
        if name == volume then
            list[#list + 1] = number
        end
    end
    return list
end

-- Return a list of everything that an iterator of zfs.list yields.
local function as_list(iterator)
    local list = {}
    for name in iterator do
        list[#list + 1] = name
    end
    return list
end

local function children(qube)
    return as_list(zfs.list.children(qube))
end

-- Return the numbers of all generations of one volume.
local function generations(qube, volume)
    return numbers_among(children(qube), volume)
end

-- The same, from the children that the qube had at the first call for any of
-- its volumes, because listing is slow.  Only for a program that calls this
-- before it changes a volume, and changes no other volume.
local listed = {}
local function generations_at_first(qube, volume)
    listed[qube] = listed[qube] or children(qube)
    return numbers_among(listed[qube], volume)
end

