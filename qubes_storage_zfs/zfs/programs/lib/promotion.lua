-- SPDX-License-Identifier: BSD-2-Clause
-- Shared by remove.lua, collect.lua and garbage.lua: a generation that no volume
-- needs, but a clone of it does.
--
-- Its snapshots are marked for deferred destruction by then, so ZFS destroys
-- the last one together with its last clone.  If one clone alone is left, that
-- clone is promoted: the snapshot then belongs to the clone, the generation
-- becomes the snapshot's only clone, and both go when it is destroyed.
--
-- A state of a removed volume must never become a revision of the clone.  So
-- the snapshot is renamed to @g<n>, which names no revision, in the group of
-- changes that promotes; and its mark moves with it.  If the program is ended
-- after both, the generation is garbage without a snapshot.  If only the new
-- name is given, the next collection of garbage finds the clone again, and gives
-- another name.

-- Bookmarks of a generation, a list of names.
local function bookmarks_of(ds)
    return as_list(zfs.list.bookmarks(ds))
end

-- Whether a dataset is a generation, made by this driver, of a volume that
-- exists.  argv: prefix, holder
local function is_of_volume(ds)
    local volume = parse_generation(ds)
    return own_property(ds, argv.holder) ~= nil
        and current_number(parent_of(ds), argv.prefix .. volume) ~= nil
end

-- The clone that alone keeps a generation, and the snapshot it was cloned
-- from.  nil if more than that keeps it: a second clone, a clone that is not
-- this driver's, a hold, or a snapshot of an administrator's.
local function sole_clone(ds)
    local last = nil
    for snapshot in zfs.list.snapshots(ds) do
        if last ~= nil or not is_deferred(snapshot) then
            return nil
        end
        last = snapshot
    end
    if last == nil or (zfs.get_prop(last, "userrefs")) ~= 0 then
        return nil
    end
    local only = nil
    for clone in zfs.list.clones(last) do
        if only ~= nil then
            return nil
        end
        only = clone
    end
    if only ~= nil and is_of_volume(only) then
        return only, last
    end
    return nil
end

-- Destroy a generation that no volume needs, and promote its only clone for
-- it if need be.  Bookmarks would move to the clone, so with any the
-- generation is left alone.  Gives the errno.
local function destroy_unneeded(ds)
    local errno = destroy_whole(ds)
    if errno == 0 then
        return 0
    end
    local clone, snapshot = sole_clone(ds)
    if clone == nil or #bookmarks_of(ds) > 0 then
        return errno
    end
    local number, name = 0, nil
    repeat
        number = number + 1
        name = "g" .. string.format("%d", number)
    until not zfs.exists(ds .. "@" .. name)
        and not zfs.exists(clone .. "@" .. name)
    errno = all_or_none({
        {zfs.sync.rename_snapshot, ds, string.match(snapshot, "@(.*)$"), name},
        {zfs.sync.promote, clone},
    })
    if errno ~= 0 then
        return errno
    end
    return destroy_whole(ds)
end

