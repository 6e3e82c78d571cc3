-- SPDX-License-Identifier: BSD-2-Clause
-- Several changes as one, although ZFS can end a program between two of them.
--
-- If the process that called a program is killed, ZFS ends the program between
-- two instructions and keeps the changes made until then.  Only SIGKILL does
-- this, because lzc.py blocks all other signals.
--
-- all_or_none() makes its changes where ZFS does not check whether to end the
-- program.  It relies on how OpenZFS counts instructions.  This was read in the
-- source of OpenZFS 2.3.3 to 2.3.9 and 2.4.0 to 2.4.4, which is the same here:
--
--   zcp_eval_impl()      sets a hook for every 100th instruction
--                        (zfs_lua_check_instrlimit_interval), module/zfs/zcp.c
--   zcp_lua_counthook()  the hook; only it ends a program, module/zfs/zcp.c
--   lua_newthread()      gives a new coroutine the same hook, with a counter
--                        that starts again (resethookcount()),
--                        module/lua/lstate.c
--   auxresume()          resumes a coroutine without executing an instruction,
--                        module/lua/lcorolib.c
--
-- zcp.py sets `atomic` to true for these versions.  For all other versions, the
-- changes are made one after the other, and ZFS may end the program between two
-- of them.  So every caller orders its changes such that a first part of them
-- is a state that the next stop(), start() or garbage collection completes.  A
-- comment at each list of changes says why.

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

-- Make all changes in `list`, or none if the caller is killed.
--
-- list: each item is {function, argument ...}; the function returns an errno.
-- The first change that fails ends the list.  Returns 0, or the errno and the
-- change that failed.
--
-- Four changes take fewer than 100 instructions, also with drop_revision(), and
-- so do four coroutines of four changes each.  All coroutines are created
-- before the first of them runs.
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

