# SPDX-License-Identifier: BSD-2-Clause
"""Create a zpool on disks that were checked, and record persistent paths.

``zpool create`` opens a device by its path, and a link in /dev/mapper or
/dev/disk may lead to another disk by then.  So zpool(8) gets the kernel's name
of a device that is kept open.  A name like /dev/sdb or /dev/dm-3 may belong to
another disk after the next boot.  So the path that the user entered is recorded
in the zpool afterwards.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from . import commands, importexport, lzc
from .probe import Device
from .sysfs import partitions
from .threads import NO_ZPOOL

LOG = logging.getLogger("qubes.storage.zfs")

#: seconds until the link to a new partition counts as missing
LINK_LIMIT = 10.0


async def create(
    name: str,
    devices: Sequence[Device],
    compression: str,
    properties: Mapping[str, str],
) -> None:
    """Create a zpool over *devices* that probe.checked() keeps open.

    :param name: of the zpool
    :param properties: of the root dataset
    :raises DeviceRefused: if a path no longer leads to the device that was
        checked; then no zpool exists
    :raises CommandFailed: if zpool(8) refuses
    """
    await _must_be_the_same(devices)
    nodes = [device.node for device in devices]
    await commands.create_zpool(name, nodes, compression, properties)
    try:
        await _must_be_the_same(devices)
        await _record_paths(name, devices)
    except BaseException:
        await commands.destroy_zpool(name)
        raise


async def _must_be_the_same(devices: Sequence[Device]) -> None:
    for device in devices:
        await lzc.in_thread(NO_ZPOOL, device.check_unchanged)


async def _record_paths(name: str, devices: Sequence[Device]) -> None:
    """Record the paths that the user entered in the labels of the zpool."""
    for recorded in await importexport.disks(name):
        for device in devices:
            path = _persistent_path(device, recorded)
            if path is not None and path != recorded:
                await _record_path(name, recorded, path)


def _persistent_path(device: Device, recorded: str) -> str | None:
    """Return the path to record for a vdev, made from the path of the user.

    :param recorded: the path that ``zpool create`` recorded
    :return: None if the vdev is on another device, or has no such path
    """
    if not device.path.startswith("/dev/"):
        return None
    if recorded == device.node:
        return device.path
    parts = {f"/dev/{part.name}" for part in partitions(device.sysfs)}
    # zpool(8) creates a partition on a whole disk, and udev a link to it
    if recorded in parts and device.path.startswith("/dev/disk/"):
        return f"{device.path}-part1"
    return None


async def _record_path(name: str, recorded: str, path: str) -> None:
    end = asyncio.get_running_loop().time() + LINK_LIMIT
    while os.path.realpath(path) != recorded:
        if asyncio.get_running_loop().time() > end:
            LOG.warning(
                "zpool %s: its device path is still %s, because %s does not"
                " lead there yet",
                name,
                recorded,
                path,
            )
            return
        await asyncio.sleep(0.1)
    await commands.run("zpool", "set", f"path={path}", name, recorded)
