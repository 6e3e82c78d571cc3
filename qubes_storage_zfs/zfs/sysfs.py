# SPDX-License-Identifier: BSD-2-Clause
"""Read about block devices in sysfs and /proc, without opening them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path


def entry(folder: Path, name: str) -> str:
    """Return the content of a file in sysfs; "" if it cannot be read."""
    try:
        return (folder / name).read_text().strip()
    except OSError:
        return ""


def partitions(disk: Path) -> list[Path]:
    """Return the sysfs folders of the partitions of a disk."""
    return sorted(file.parent for file in disk.glob("*/partition"))


def holders(device: Path) -> Iterator[str]:
    """Yield the names of the devices that are made of a device, such as dm.

    :param device: sysfs folder
    """
    for holder in sorted(device.glob("holders/*")):
        yield entry(holder, "dm/name") or holder.name


def attached() -> Iterator[tuple[str, str]]:
    """Yield Xen's backend and "major:minor" of each device of a qube."""
    for backend in Path("/sys/bus/xen-backend/devices").glob("vbd-*"):
        major, _, minor = entry(backend, "physical_device").partition(":")
        number = f"{int(major or '0', 16)}:{int(minor or '0', 16)}"
        yield backend.name, number


def mounted_at(number: int, mountinfo: str) -> str | None:
    """Return the first mount point of a device; None if it is not mounted.

    btrfs has device numbers of its own in mountinfo, so the source of each
    mount is compared as well.

    :param number: st_rdev
    :param mountinfo: content of /proc/self/mountinfo
    """
    own = f"{os.major(number)}:{os.minor(number)}"
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        source = _unescape(rest.split(" ")[1]) if " " in rest else ""
        if fields.split(" ")[2] == own or _is_device(source, number):
            return _unescape(fields.split(" ")[4])
    return None


def uses(number: int, device: Path, disk: Path) -> Iterator[str]:
    """Yield descriptions of the uses of a device, to follow its name.

    :param number: st_rdev
    :param device: sysfs folder of the device
    :param disk: sysfs folder of its disk, which may be the same
    """
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="replace")
    place = mounted_at(number, mountinfo)
    if place is not None:
        yield f"is mounted at {place}"
    for line in entry(Path("/proc"), "swaps").splitlines()[1:]:
        if _is_device(_unescape(line.split()[0]), number):
            yield "is in use as swap"
    for holder in holders(device):
        yield f"is in use by {holder}"
    for loop in Path("/sys/block").glob("loop*"):
        if _is_device(entry(loop, "loop/backing_file"), number):
            yield f"is in use by /dev/{loop.name}"
    # Xen's backend does not open a device exclusively, and the partitions of a
    # disk do not show that it uses the disk
    numbers = [entry(folder, "dev") for folder in (device, disk)]
    for backend, used in attached():
        if used in numbers:
            yield f"is attached to a running qube ({backend})"


def _unescape(field: str) -> str:
    r"""Return a field of mountinfo or swaps without escapes such as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _is_device(path: str, number: int) -> bool:
    try:
        return path.startswith("/dev/") and os.stat(path).st_rdev == number
    except OSError:
        return False
