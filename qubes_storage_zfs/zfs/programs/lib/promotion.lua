-- SPDX-License-Identifier: BSD-2-Clause
-- Promotion: how a generation that only one clone needs is destroyed.  Used by
-- remove.lua, collect.lua and garbage.lua.
--
-- The volume of such a generation was removed or no longer points to it.  Its
-- snapshots are marked for deferred destruction, so ZFS destroys the last one
-- together with its last clone.  If exactly one clone is left,
-- destroy_unneeded() promotes that clone.  Then the snapshot belongs to the
-- clone, the generation is the only clone of the snapshot, and destroying the
-- generation destroys both.
--
-- A state of a removed volume must never become a revision of the clone.  So
-- the snapshot is first renamed to @g<n>, which does not name a revision, in
-- the same list of changes as the promotion.  The mark for deferred destruction
-- moves with it.  If the program ends after both changes, the generation is
-- garbage without a snapshot.  If it ends after the renaming, the next garbage
-- collection finds the clone again and renames the snapshot again.

-- Return the bookmarks of a generation, a list of names.
local function bookmarks_of(ds)
    return as_list(zfs.list.bookmarks(ds))
end

-- Return whether a dataset is a generation that this driver made, of a volume
-- that exists.  Reads argv.prefix and argv.holder.
local function is_of_volume(ds)
    local volume = parse_generation(ds)
    return own_property(ds, argv.holder) ~= nil
        and current_number(parent_of(ds), argv.prefix .. volume) ~= nil
end

-- Return the only clone that needs a generation, and the snapshot it was cloned
-- from.  Return nil if anything else needs it: a second clone, a clone that is
-- not this driver's, a hold, or an administrator's snapshot.
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
    local sole = nil
    for clone in zfs.list.clones(last) do
        if sole ~= nil then
            return nil
        end
        sole = clone
    end
    if sole ~= nil and is_of_volume(sole) then
        return sole, last
    end
    return nil
end

-- Destroy a generation that no volume needs; promote its only clone if it has
-- one.  Returns an errno.  A generation with bookmarks is not promoted over,
-- because a promotion moves bookmarks to the clone.
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

