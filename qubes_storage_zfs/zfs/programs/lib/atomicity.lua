-- SPDX-License-Identifier: BSD-2-Clause
-- Changes that belong together, made without an end between them.
--
-- ZFS ends a program between two of its instructions if its caller is killed,
-- and keeps what the program did by then.  A caller is killed with SIGKILL
-- alone, because lzc.py blocks the other signals.
--
-- all_or_none() makes changes where ZFS does not look whether to end the
-- program.  It relies on how OpenZFS counts instructions, verified for OpenZFS
-- 2.3.3 to 2.3.9 and 2.4.0 to 2.4.4, whose code is the same here:
--
--   zcp_eval_impl()      sets a hook for every hundredth instruction
--                        (zfs_lua_check_instrlimit_interval), module/zfs/zcp.c
--   zcp_lua_counthook()  the hook: it alone ends a program, module/zfs/zcp.c
--   lua_newthread()      a coroutine inherits the hook and starts to count from
--                        zero (resethookcount()), module/lua/lstate.c
--   auxresume()          resumes it without an instruction, module/lua/lcorolib.c
--
-- zcp.py sets `atomic` for these versions.  With any other, the changes are made
-- one after the other, and the program may be ended between two of them.  So
-- every caller orders its changes such that any first part of them is a state
-- that the next stop(), start() or collection of garbage completes; a comment
-- there says why.

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

-- Make all changes in the list, each {function, arguments ...} and returning
-- an errno, or none if the caller was killed.  One that fails ends it; returns
-- its errno and the change.
--
-- Four changes take less than a hundred instructions, drop_revision() included,
-- and so do four coroutines of four; all coroutines are created before any of
-- them runs.
local function all_or_none(list)
    if not atomic then
        return make_changes(list)
    end
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

