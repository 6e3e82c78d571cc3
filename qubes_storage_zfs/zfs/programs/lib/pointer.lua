-- SPDX-License-Identifier: BSD-2-Clause
-- Pointers: the property of a qube's dataset that names the current generation
-- of a volume.  No other file here knows their grammar; store/pointer.py has it
-- for Python:
--
--   <generation>                              its content is kept
--   <generation> scratch <size>[/<blocksize>] its content is discarded
--   <generation> from <source>[ r<revision>]  it began as a copy of a revision,
--                                             or blank; r<revision> is that copy

-- Number of the current generation of a volume, nil if it has none; whether
-- that is one whose content is discarded; and what such a one was created for,
-- a string.
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
local function copied_from(qube, pointer)
    local value = own_property(qube, pointer)
    local from, number = string.match(value or "", " from (%S+) ?r?(%d*)$")
    return from, tonumber(number)
end

-- The pointer to a generation whose content is discarded.
local function disposable_pointer(number, size)
    return string.format("%d", number) .. " scratch " .. size
end

-- The pointer to a generation whose content is kept; `source` is nil unless the
-- volume begins anew at each start, and `snapshot` is then the revision that is
-- no more than a copy of it, nil if there is none.
local function persistent_pointer(number, source, snapshot)
    local value = string.format("%d", number)
    if source ~= nil then
        value = value .. " from " .. source
        if snapshot ~= nil then
            value = value .. " " .. string.match(snapshot, "@(.*)$")
        end
    end
    return value
end

