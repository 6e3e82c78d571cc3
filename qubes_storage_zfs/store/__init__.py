"""What is on disk: names, state and changes; no qubes, no libzfs_core."""
