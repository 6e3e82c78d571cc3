-- SPDX-License-Identifier: BSD-2-Clause
-- Pointers: the property of a qube's dataset that names the current generation
-- of a volume.  Only this file and, in Python, store/pointer.py know the
-- grammar:
--
--   <generation>                              kept at stop
--   <generation> scratch <size>[/<blocksize>] discarded at stop (prose: format)
--   <generation> from <source>[ r<revision>]  kept; a copy of the revision
--                                             <source>, or of "blank";
--                                             r<revision> is only that copy

-- Return the number of a volume's current generation (nil if there is none),
-- whether it is disposable, and the "<size>[/<blocksize>]" it was created for.
local function current_number(qube, pointer)
    local value = own_property(qube, pointer)
    if value == nil then
        return nil, false
    end
    return tonumber(string.match(value, "^(%d+)")),
        string.match(value, " scratch") ~= nil,
        string.match(value, " scratch (%S+)$")
end

-- Return the source that the current generation is a copy of, a string, and the
-- number of the revision that is only that copy.  Each is nil if absent.
local function copied_from(qube, pointer)
    local value = own_property(qube, pointer)
    local from, number = string.match(value or "", " from (%S+) ?r?(%d*)$")
    return from, tonumber(number)
end

-- Return the pointer to a disposable generation.
local function disposable_pointer(number, size)
    return string.format("%d", number) .. " scratch " .. size
end

-- Return the pointer to a generation that is kept at stop.
-- source: what it is a copy of, or nil.  snapshot: full name of the revision
-- that is only that copy, or nil.
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

