# SPDX-License-Identifier: BSD-2-Clause
"""Probe block devices: check that they are empty and may become a zpool.

Even without -f, zpool(8) overwrites partition tables, destroyed zpools and
data without a signature (tested with 2.3.9).  So a device is accepted only if
it is not in use, has no signature, and has zeroes at both ends.  Only
make_empty_again() writes to a device.
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

#: bytes; zpool(8) accepts 64 MiB, but ZFS itself needs most of that
SMALLEST = 256 << 20
#: bytes at each end that must be zero; partition tables, superblocks and the
#: labels of ZFS (two of 256 KiB at each end) are there
EDGE = 1 << 20
#: ioctl of linux/fs.h that reads the partition table again
BLKRRPART = 0x125F

#: partitions that zpool(8) creates on a whole disk (efi_partition of libefi)
_ZPOOL_PARTITIONS = frozenset({"1", "9"})
#: signatures that zpool(8) writes, by their names in wipefs(8)
_ZPOOL_SIGNATURES = frozenset({"zfs_member", "gpt", "PMBR"})
#: name of a signature in libblkid -> text for a message
_MEANING = {
    "dos": "an MBR partition table",
    "gpt": "a GPT partition table",
    "zfs_member": "the label of a zpool, perhaps a destroyed one",
    "LVM2_member": "an LVM physical volume",
    "crypto_LUKS": "an encrypted LUKS volume",
    "linux_raid_member": "a RAID member",
    "swap": "swap space",
}


def _plain(text: str) -> str:
    """Return *text* as one line without %, escaped as udev escapes names."""
    return "".join(
        c if c.isprintable() and c != "%" else f"\\x{ord(c):02x}" for c in text
    )


class DeviceRefused(ZfsError):
    """A device must not be overwritten.

    :ivar device: its path, as the user entered it
    :ivar reason: the rest of the message, with the remedy
    """

    def __init__(self, device: str, reason: str) -> None:
        """Create the refusal of a device."""
        super().__init__(device, errno.EBUSY, "use")
        self.device = device
        self.reason = reason

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        device, reason = _plain(self.device), _plain(self.reason)
        return {**super().data, "device": device, "reason": reason}

    def __str__(self) -> str:
        """Return the message: the device and the reason."""
        return f"{_plain(self.device)} {_plain(self.reason)}"


def split_devices(text: str) -> list[str]:
    """Return the devices in *text*, separated by commas, blanks or colons.

    A colon is a separator only before a slash, because names in
    /dev/disk/by-path contain colons.

    :raises ValueError: if *text* contains no device, with a message
    """
    devices = [part for part in re.split(r"[,\s]+|:(?=/)", text) if part]
    if not devices:
        raise ValueError("block_devices names no device; name at least one")
    return devices


@dataclass(frozen=True)
class Device:
    """The state of a block device at the time of _look_up().

    :ivar path: as the user entered it; a link may lead to another device later
    :ivar number: st_rdev
    :ivar sysfs: folder of the device in /sys/devices
    :ivar sequence: sequence number of the disk (diskseq), which the kernel
        assigns to no other disk until the next boot
    """

    path: str
    number: int
    sysfs: Path
    sequence: str = ""

    @property
    def node(self) -> str:
        """The kernel's name; no other device gets it while this one is open."""
        return "/dev/" + self.sysfs.name.replace("!", "/")

    def check_unchanged(self) -> None:
        """Check that the path still leads to this device.

        :raises DeviceRefused: if it leads to another device
        """
        now = _look_up(self.path)
        if (now.number, now.sequence) != (self.number, self.sequence):
            raise DeviceRefused(
                self.path,
                "leads to another device than when it was checked, so nothing"
                " was changed; find out what changes the link",
            )

    @property
    def disk(self) -> Path:
        """The sysfs folder of the whole disk, which may be this device."""
        is_partition = (self.sysfs / "partition").exists()
        return self.sysfs.parent if is_partition else self.sysfs


def _look_up(path: str) -> Device:
    """Return the block device that *path* leads to.

    :raises DeviceRefused: if *path* is relative, or leads to no block device
    """
    names = "; give the full path of a device, such as one in /dev/disk/by-id"
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
    """Yield reasons to refuse a device, found without opening it."""
    if entry(device.sysfs, "dm/uuid").startswith("LVM-"):
        yield "is an LVM volume, where qubes may have data; name a disk"
    if device.sysfs.name.startswith("zd"):
        yield (
            "is a zvol, and a zpool inside a zpool can hang the machine; name a"
            " disk or a partition"
        )
    size = int(entry(device.sysfs, "size") or "0") * 512
    if size < SMALLEST:
        yield (
            f"is too small ({size >> 20} MiB); name a device of at least"
            f" {SMALLEST >> 20} MiB"
        )
    if entry(device.sysfs, "ro") != "0":
        yield "is read-only; name a device that can be written to"
    for use in uses(device.number, device.sysfs, device.disk):
        yield f"{use}; end that use, or name another device"


async def _patiently(function: Callable[[str], None], path: str) -> None:
    """Call *function* in a thread; retry while the device is busy.

    udev opens a device for a moment after each change.

    :raises OSError: EBUSY if the device remains busy, or any other
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
    """Check that a device can be opened exclusively, as mount and ZFS do.

    This opens it read-only.  Closing a writable descriptor makes udev probe
    the device, which would then be busy for the next check.

    :raises OSError: EBUSY if it is open exclusively already
    """
    os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))


async def _signatures(path: str, entered: str = "") -> list[str]:
    """Return the names of the signatures that libblkid finds on a device.

    :param entered: the path as the user entered it
    :raises DeviceRefused: if the device cannot be read
    """
    try:
        # one line per signature: "offset,uuid,label,type", encoded
        _, listing = await commands.run("wipefs", "-n", "-p", path)
        # 2: no signature; 8: several that contradict each other
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
    # for a partition, blkid also prints its entry in the partition table
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
    """Return a reason to refuse a device, found by opening and reading it."""
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
    content = f"contains {_MEANING.get(name, f'a signature ({name})')}"
    if busy:
        also = f", and {content}" if name else ""
        return (
            f"is in use by the system or by an imported zpool{also}; end that"
            " use, or name another device"
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
            "is not empty: it contains data of an unknown kind, perhaps"
            " encrypted (a new LUKS device looks like this inside); name"
            " another device, or, if nothing on it is needed, overwrite its"
            " first and last MiB with zeroes"
        )
    return None


@contextlib.asynccontextmanager
async def checked(devices: Sequence[str]) -> AsyncIterator[list[Device]]:
    """Check that *devices* may be overwritten; keep them open in the context.

    This writes nothing.  While a device is open, its node leads to no other
    device.  zpool(8) can still open it exclusively.

    :raises DeviceRefused: if a device must not be overwritten
    :raises CommandFailed: with code 127, if wipefs(8) or blkid(8) is not
        installed
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

    :raises DeviceRefused: if it cannot be opened, or if its path now leads to
        another device
    """
    try:
        fd = os.open(device.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        reason = f"cannot be read ({exc.strerror}); name another device"
        raise DeviceRefused(device.path, reason) from exc
    opened.callback(os.close, fd)
    device.check_unchanged()


def _clear_edges(path: str) -> None:
    """Overwrite both ends; have the kernel read the partition table again."""
    with open(os.open(path, os.O_RDWR | os.O_EXCL), "r+b") as file:
        for offset in (0, file.seek(0, os.SEEK_END) - EDGE):
            file.seek(offset)
            file.write(bytes(EDGE))
        file.flush()
        os.fsync(file)
        try:
            fcntl.ioctl(file, BLKRRPART)
        except OSError as exc:
            # not for a partition or a loop device without partitions
            if exc.errno not in (errno.EINVAL, errno.ENOTTY):
                raise


async def _undo(path: str) -> None:
    """Remove what zpool(8) wrote to a device: partitions and labels.

    :raises DeviceRefused: if the device has other content, or is in use
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
            "was changed by a program other than zpool, so it was not cleared;"
            f" name another device, {_erase(device)}",
        )
    for node in nodes:
        # 1 or 255: there is no label
        await commands.run("zpool", "labelclear", "-f", node, ok=(0, 1, 255))
    try:
        await _patiently(_clear_edges, path)
    except OSError as exc:
        raise DeviceRefused(
            path,
            f"could not be cleared ({exc.strerror});"
            f" name another device, {_erase(device)}",
        ) from exc


async def make_empty_again(devices: Sequence[str]) -> None:
    """Remove what a failed commands.create_zpool() wrote to devices.

    Only for devices that checked() has just accepted: both their ends were
    zero, so they may be overwritten.  This tries all devices before it raises
    the first failure.

    :raises DeviceRefused: if a device is in use, absent, or has other content
    """
    failure: ZfsError | None = None
    for path in devices:
        try:
            await _undo(path)
        except ZfsError as exc:
            failure = failure or exc
    if failure is not None:
        raise failure
