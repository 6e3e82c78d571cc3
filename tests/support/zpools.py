# SPDX-License-Identifier: BSD-2-Clause
"""Commands, zpools, and the devices of volumes."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from qubes_storage_zfs.zfs import devices, lzc

MIB = 1 << 20
#: the zpool that most tests share, and its only disk
ZPOOL = "tank"
DISK = Path("/tmp/tank.img")


def attempt(*command, given=""):
    """Run a command; return the finished process, whatever its status.

    :param given: standard input
    """
    return subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        # the name of a dataset may have any bytes
        errors="surrogateescape",
    )


def sh(*command, check=True, given=""):
    """Run a command; return its output without the last newline.

    :param given: standard input
    :raises RuntimeError: if *check* is set and the command fails
    """
    done = attempt(*command, given=given)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def value(dataset, name):
    """Return the parsable value of a property."""
    return sh("zfs", "get", "-Hpo", "value", name, dataset)


def sectors():
    """Return the options of zpool create that set the size of a sector.

    Tests use 512 bytes on OpenZFS 2.3, and on others 4 KiB, as most disks have.
    The space that ZFS counts for a volume depends on this size.
    """
    version = lzc.version_numbers()
    assert version is not None, "the zfs module is not loaded"
    return "-o", f"ashift={9 if version < (2, 4) else 12}"


def create_zpool(name, disk, size=256 * MIB, options=()):
    """Create a zpool without a mountpoint, on a sparse file."""
    with open(disk, "wb") as file:
        file.truncate(size)
    sh("zpool", "create", *options, "-m", "none", name, str(disk))


def export_zpool(name):
    """Export a zpool; retry while udev probes one of its zvols."""
    for _ in range(20):
        if "busy" not in attempt("zpool", "export", name).stderr:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{name} is still busy")


def clear():
    """Remove the zpool that an earlier run in this guest left."""
    if DISK.exists():
        sh("timeout", "60", "zpool", "destroy", "-f", ZPOOL, check=False)
        DISK.unlink()


def disk_of(name):
    """Return the file of a zpool that another_zpool() creates."""
    return Path(f"/tmp/{name}.img")


@contextlib.contextmanager
def another_zpool(name, *options):
    """Create a zpool that a test can export; destroy it at the end."""
    create_zpool(name, disk_of(name), options=options)
    yield name
    sh("zpool", "destroy", "-f", name, check=False)
    disk_of(name).unlink()


def inherit_no_further(dataset):
    """Set properties of a dataset to the values that they have.

    Each time ZFS opens a dataset, it looks up each property from there up to
    the dataset that sets it. Under emulation this is half of the cost of
    opening a dataset.
    """
    values = {
        "checksum": "on",
        "compression": "on",
        "copies": "1",
        "dedup": "off",
        "logbias": "latency",
        "prefetch": "all",
        "primarycache": "all",
        "readonly": "off",
        "redundant_metadata": "all",
        "secondarycache": "all",
        "snapdev": "hidden",
        "sync": "standard",
        "volmode": "dev",
    }
    settings = [f"{name}={value}" for name, value in values.items()]
    sh("zfs", "set", *settings, dataset)


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
