-- Whether this module's channel programs can clone.  Read-only.
return zfs.sync.clone ~= nil
