"""The story of a qube on ZFS, told in a virtual machine."""
