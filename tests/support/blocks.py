"""Read and write a volume through its device node, as a qube does."""

import os

from qubes_storage_zfs.zfs import devices


def open_device(path, flags):
    """Open a device node without a buffer."""
    mode = "rb" if flags == os.O_RDONLY else "r+b"
    return os.fdopen(devices.open_node(path, flags), mode, buffering=0)


def write(path, content, offset=0):
    """Write *content*, padded to whole sectors, and flush it to the disk."""
    with open_device(path, os.O_RDWR) as opened:
        opened.seek(offset)
        padded = content + bytes(-len(content) % 512)
        opened.write(padded)
        os.fsync(opened)


def read(path, length=16, offset=0):
    """Read *length* bytes; return them without the zeroes at the end."""
    with open_device(path, os.O_RDONLY) as opened:
        opened.seek(offset)
        return opened.read(length).rstrip(b"\0")
