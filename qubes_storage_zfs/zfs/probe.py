# SPDX-License-Identifier: BSD-2-Clause
"""Check that block devices are empty, so that they may become a zpool.

zpool(8) overwrites partition tables, destroyed zpools and data without a
signature, all without being forced (run on 2.3.9).  So a device is accepted
only if it is not in use, no signature is on it, and both its ends are zero.
Only make_empty_again() writes to a device.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import commands, lzc
from .errors import CommandFailed, ZfsError
from .sysfs import entry, partitions, uses
from .threads import NO_ZPOOL

#: bytes; zpool(8) accepts 64 MiB, of which ZFS needs most for itself
SMALLEST = 256 << 20
#: bytes at either end that must be zero: partition tables, superblocks, and
#: the four labels of ZFS (256 KiB each, two at either end) are in there
EDGE = 1 << 20
#: ioctl of linux/fs.h: read the partition table again
BLKRRPART = 0x125F

#: partitions that zpool(8) creates on a whole disk (efi_partition of libefi)
_ZPOOL_PARTITIONS = frozenset({"1", "9"})
#: signatures, as wipefs(8) calls them, that zpool(8) writes
_ZPOOL_SIGNATURES = frozenset({"zfs_member", "gpt", "PMBR"})
#: name of a signature in libblkid -> text for a person
_MEANING = {
    "dos": "an MBR partition table",
    "gpt": "a GPT partition table",
    "zfs_member": "the label of a zpool, perhaps a destroyed one",
    "LVM2_member": "an LVM physical volume",
    "crypto_LUKS": "an encrypted LUKS volume",
    "linux_raid_member": "a member of a RAID",
    "swap": "swap space",
}


def _plain(text: str) -> str:
    """Return *text* as one line without %, as udev escapes names of links."""
    return "".join(
        c if c.isprintable() and c != "%" else f"\\x{ord(c):02x}" for c in text
    )


class DeviceRefused(ZfsError):
    """A device must not be overwritten.

    :ivar device: its path, as the person entered it
    :ivar reason: the rest of the sentence, with the remedy
    """

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, errno.EBUSY, "use")
        self.device = device
        self.reason = reason

    @property
    def data(self) -> Mapping[str, object]:
        device, reason = _plain(self.device), _plain(self.reason)
        return {**super().data, "device": device, "reason": reason}

    def __str__(self) -> str:
        return f"{_plain(self.device)} {_plain(self.reason)}."


def split_devices(text: str) -> list[str]:
    """Return the devices in *text*, separated by commas, blanks or colons.

    A colon separates only before a slash: names in /dev/disk/by-path contain
    colons.

    :raises ValueError: if there is none; its text is a sentence
    """
    devices = [part for part in re.split(r"[,\s]+|:(?=/)", text) if part]
    if not devices:
        raise ValueError("No block device is given; name at least one.")
    return devices


@dataclass(frozen=True)
class Device:
    """A block device, as it was when it was looked up.

    :ivar path: as the person entered it; a link may lead to another device a
        moment later
    :ivar number: st_rdev
    :ivar sysfs: its folder in /sys/devices
    :ivar sequence: the number that the kernel gives to its disk, and to no
        other since the machine booted (diskseq)
    """

    path: str
    number: int
    sysfs: Path
    sequence: str = ""

    @property
    def node(self) -> str:
        """The kernel's name, which no other device gets while it is open."""
        return "/dev/" + self.sysfs.name.replace("!", "/")

    def check_unchanged(self) -> None:
        """Check that the path still leads to this device.

        :raises DeviceRefused: if it leads to another one
        """
        now = _look_up(self.path)
        if (now.number, now.sequence) != (self.number, self.sequence):
            raise DeviceRefused(
                self.path,
                "leads to another device now than when it was checked; that one"
                " was not changed. Find out what changes the link",
            )

    @property
    def disk(self) -> Path:
        """The sysfs folder of the whole disk, which may be this one."""
        is_partition = (self.sysfs / "partition").exists()
        return self.sysfs.parent if is_partition else self.sysfs


def _look_up(path: str) -> Device:
    """Return the block device behind a path.

    :raises DeviceRefused: if *path* is not that of a block device
    """
    names = "; give a device by its full name, as in /dev/disk/by-id"
    if not path.startswith("/"):
        raise DeviceRefused(path, "is not an absolute path" + names)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as exc:
        raise DeviceRefused(path, "does not exist" + names) from exc
    if not stat.S_ISBLK(status.st_mode):
        raise DeviceRefused(path, "is not a block device" + names)
    number = status.st_rdev
    sysfs = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    device = Device(path, number, sysfs.resolve())
    return replace(device, sequence=entry(device.disk, "diskseq"))


def _check_distinct(devices: Sequence[Device]) -> None:
    for place, device in enumerate(devices):
        for other in devices[:place]:
            if device.number == other.number:
                raise DeviceRefused(
                    device.path,
                    f"is the same device as {other.path}; name it once",
                )
        for other in devices:
            if device.sysfs != other.sysfs and device.disk == other.sysfs:
                raise DeviceRefused(
                    device.path,
                    f"is a partition of {other.path}; name only one of them",
                )


def _erase(device: Device) -> str:
    return (
        f"or, if nothing on it is needed, run 'sudo wipefs --all {device.path}'"
        " and overwrite its first and last MiB with zeroes"
    )


def _obstacles(device: Device) -> Iterator[str]:
    """Yield reasons that show without opening the device."""
    if entry(device.sysfs, "dm/uuid").startswith("LVM-"):
        yield "is a volume of LVM, where qubes may have data; name a disk"
    if device.sysfs.name.startswith("zd"):
        yield (
            "is a volume of ZFS, and a zpool within a zpool can hang the"
            " machine; name a disk or a partition"
        )
    size = int(entry(device.sysfs, "size") or "0") * 512
    if size < SMALLEST:
        yield (
            f"is too small ({size >> 20} MiB); name one of at least"
            f" {SMALLEST >> 20} MiB"
        )
    if entry(device.sysfs, "ro") != "0":
        yield "is read-only; name one that can be written"
    for use in uses(device.number, device.sysfs, device.disk):
        yield f"{use}; release it there, or name another device"


async def _patiently(function: Callable[[str], None], path: str) -> None:
    """Call in a thread; again while the device is busy, as udev opens it.

    :raises OSError: EBUSY if it is busy for long, or another
    """
    for pause in commands.PAUSES:
        try:
            await lzc.in_thread(NO_ZPOOL, function, path)
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
        await asyncio.sleep(pause)
    await lzc.in_thread(NO_ZPOOL, function, path)


def _claim(path: str) -> None:
    """Open a device exclusively, as mount, dm, md and ZFS do.

    Read-only, because closing a writable descriptor makes udev probe, and then
    the device is busy for the next check.

    :raises OSError: EBUSY if another opener is exclusive
    """
    os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))


async def _signatures(path: str, entered: str = "") -> list[str]:
    """Return the names of the signatures that libblkid recognises.

    :param entered: the path as the person entered it
    :raises DeviceRefused: if the device could not be read
    """
    try:
        # "offset,uuid,label,type" of each, label and uuid being encoded
        _, listing = await commands.run("wipefs", "-n", "-p", path)
        # 2: nothing; 8: several that exclude each other
        status, exported = await commands.run(
            "blkid", "-p", "-o", "export", path, ok=(0, 2, 8)
        )
    except CommandFailed as exc:
        if exc.code == 127:
            raise
        raise DeviceRefused(
            entered or path,
            f"cannot be read ({exc.output}); name another device",
        ) from exc
    names = re.findall(r"^(?:PT)?TYPE=(.*)$", exported, re.MULTILINE)
    names += re.findall(r"^[^#].*,(.*)$", listing, re.MULTILINE)
    # of a partition, blkid also prints the entry in its disk's table
    other = re.search(r"^(?!DEVNAME=|PART_ENTRY_).", exported, re.MULTILINE)
    if not names and (listing or other or status == 8):
        names.append("unknown")
    return list(dict.fromkeys(names))


def _edges_zero(path: str) -> bool:
    with open(path, "rb") as file:
        for offset in (0, file.seek(0, os.SEEK_END) - EDGE):
            file.seek(offset)
            if file.read(EDGE) != bytes(EDGE):
                return False
    return True


async def _obstacle_inside(device: Device) -> str | None:
    """Return a reason that shows when the device is opened and read."""
    busy = zero = False
    try:
        await _patiently(_claim, device.node)
        zero = await lzc.in_thread(NO_ZPOOL, _edges_zero, device.node)
    except OSError as exc:
        busy = exc.errno == errno.EBUSY
        if not busy:
            return f"cannot be read ({exc.strerror}); name another device"
    names = await _signatures(device.node, device.path)
    name = names[0] if names else ""
    content = f"carries {_MEANING.get(name, f'a signature ({name})')}"
    if busy:
        also = f", and {content}" if name else ""
        return (
            f"is in use by the system or by an imported zpool{also}; release"
            " it there, or name another device"
        )
    parts = ", ".join(part.name for part in partitions(device.sysfs))
    if parts:
        return (
            f"has partitions ({parts}); name an empty disk or one empty"
            f" partition, {_erase(device)}"
        )
    if name:
        return f"{content}; name another device, {_erase(device)}"
    if not zero:
        return (
            "is not empty: it holds data that is not recognised, perhaps"
            " encrypted (a LUKS device just made looks like that inside); name"
            " another device, or, if nothing on it is needed, overwrite its"
            " first and last MiB with zeroes"
        )
    return None


@contextlib.asynccontextmanager
async def checked(devices: Sequence[str]) -> AsyncIterator[list[Device]]:
    """Check that *devices* may be overwritten, and keep them open.

    Nothing is written.  While a device is open its node leads to no other
    device; zpool(8) can still open it exclusively.

    :raises DeviceRefused: if one must not be overwritten
    :raises CommandFailed: 127 if wipefs(8) or blkid(8) is not installed
    """
    checked_devices = [
        await lzc.in_thread(NO_ZPOOL, _look_up, path) for path in devices
    ]
    _check_distinct(checked_devices)
    with contextlib.ExitStack() as opened:
        for device in checked_devices:
            reason = await lzc.in_thread(
                NO_ZPOOL, next, _obstacles(device), None
            )
            if reason is None:
                await lzc.in_thread(NO_ZPOOL, _keep_open, device, opened)
                reason = await _obstacle_inside(device)
            if reason:
                raise DeviceRefused(device.path, reason)
        yield checked_devices


def _keep_open(device: Device, opened: contextlib.ExitStack) -> None:
    """Open a device until *opened* is closed.

    :raises DeviceRefused: if it cannot be opened, or became another one
    """
    try:
        fd = os.open(device.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        why = f"cannot be read ({exc.strerror}); name another device"
        raise DeviceRefused(device.path, why) from exc
    opened.callback(os.close, fd)
    device.check_unchanged()


def _clear_edges(path: str) -> None:
    """Overwrite both edges and have the kernel forget the partitions."""
    with open(os.open(path, os.O_RDWR | os.O_EXCL), "r+b") as file:
        for offset in (0, file.seek(0, os.SEEK_END) - EDGE):
            file.seek(offset)
            file.write(bytes(EDGE))
        file.flush()
        os.fsync(file)
        try:
            fcntl.ioctl(file, BLKRRPART)
        except OSError as exc:
            # a device without partitions: a partition, a plain loop device
            if exc.errno not in (errno.EINVAL, errno.ENOTTY):
                raise


async def _undo(path: str) -> None:
    """Remove partitions and labels of zpool(8) from a device.

    :raises ZfsError: if it has content that zpool(8) does not write
    """
    device = await lzc.in_thread(NO_ZPOOL, _look_up, path)
    parts = partitions(device.sysfs)
    numbers = {entry(part, "partition") for part in parts}
    names = set(await _signatures(path))
    nodes = ["/dev/" + part.name.replace("!", "/") for part in parts]
    for node in nodes:
        names.update(await _signatures(node))
    if numbers - _ZPOOL_PARTITIONS or names - _ZPOOL_SIGNATURES:
        raise DeviceRefused(
            path,
            "was changed by something other than zpool and is left as it is;"
            f" name another device, {_erase(device)}",
        )
    for node in nodes:
        # 1 or 255 if there is no label, which is fine
        await commands.run("zpool", "labelclear", "-f", node, ok=(0, 1, 255))
    try:
        await _patiently(_clear_edges, path)
    except OSError as exc:
        raise DeviceRefused(
            path,
            f"could not be made empty again ({exc.strerror});"
            f" name another device, {_erase(device)}",
        ) from exc


async def make_empty_again(devices: Sequence[str]) -> None:
    """Remove what a failed create_zpool() wrote to devices.

    Only for devices that checked() accepted just before: both their ends were
    zero, so they may be overwritten.  All devices are cleared before the first
    failure is raised.

    :raises DeviceRefused: if one is in use, absent, or has other content
    """
    failure: ZfsError | None = None
    for path in devices:
        try:
            await _undo(path)
        except ZfsError as exc:
            failure = failure or exc
    if failure is not None:
        raise failure
