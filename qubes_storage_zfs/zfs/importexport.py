# SPDX-License-Identifier: BSD-2-Clause
"""Search for zpools, import and export them.

Another machine may have changed a disk while it was away.  Labels on the disk
name its zpool, and properties on the disk decide how this machine treats the
datasets.  So none of them is trusted before it was checked.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import commands, devices, lzc
from .sysfs import attached, entry
from .threads import NO_ZPOOL

_Task = asyncio.Task[Any]

#: statistics of the zfs module; it has a folder for each imported zpool
_KSTAT = Path("/proc/spl/kstat/zfs")
#: devices that are never searched for a zpool: a qube may have written to zvols
#: and loop devices, and no zpool is on the others
_NEVER = re.compile(r"(zd|loop|ram|zram|sr|fd|nbd)[0-9]")
#: messages of zpool(8) for a zpool that another machine may use, in lower case
_ELSEWHERE = ("another system", "other system", "imported on", "multihost")


@dataclass(frozen=True)
class ImportableZpool:
    """A zpool that is not imported, as ``zpool import`` lists it.

    :ivar state: "ONLINE" or "DEGRADED"; any other cannot be imported
    :ivar status: description of a fault; "" if there is none
    :ivar devices: devices of the zpool that are missing or broken, with state
    """

    name: str
    guid: str
    state: str
    status: str
    devices: tuple[str, ...]

    @property
    def is_used_elsewhere(self) -> bool:
        """Whether another machine imported it last, or has it imported now."""
        return used_elsewhere(self.status)


def used_elsewhere(text: str) -> bool:
    """Return whether zpool(8) says in *text* that another machine has it."""
    return any(words in text.lower() for words in _ELSEWHERE)


def guid(zpool: str) -> str | None:
    """Return the GUID of an imported zpool; None if it is not imported."""
    try:
        return (_KSTAT / zpool / "guid").read_text("ascii").strip()
    except OSError:
        return None


def imported() -> list[str]:
    """Return the names of all imported zpools, sorted."""
    return sorted(path.parent.name for path in _KSTAT.glob("*/guid"))


def names_of(zpool_guid: str) -> list[str]:
    """Return the names of all imported zpools with that GUID."""
    return [
        file.parent.name
        for file in sorted(_KSTAT.glob("*/guid"))
        if guid(file.parent.name) == zpool_guid
    ]


def import_id(zpool: str) -> str | None:
    """Return a text that is different for each import of a zpool.

    The text has the GUID and the time when the kernel created the statistics
    of the zpool, which it does at each import (crtime in the header of a kstat,
    kstat_seq_show_headers()).

    :return: None if no zpool of that name is imported
    """
    try:
        with open(_KSTAT / zpool / "iostats", encoding="ascii") as file:
            header = file.readline().split()
    except OSError:
        return guid(zpool)
    created = header[5] if len(header) > 5 else ""
    return f"{guid(zpool)} {created}"


# --- searching


def _may_have_zpool(block: Path) -> bool:
    """Return whether a zpool may be on a block device, and no qube's data.

    A device with partitions or holders is excluded: ZFS could take data of a
    volume on it for a label.
    """
    if _NEVER.match(block.name) or entry(block, "size") in ("", "0"):
        return False
    if entry(block, "dm/uuid").startswith("LVM-"):
        return False
    parts = any((part / "partition").exists() for part in block.iterdir())
    return not parts and not any(block.glob("holders/*"))


def block_devices() -> list[str]:
    """Return the disks, partitions and LUKS devices that a zpool may be on.

    Devices that are attached to a running qube are left out.
    """
    paths, in_domains = [], {number for _, number in attached()}
    for block in sorted(Path("/sys/class/block").iterdir()):
        with contextlib.suppress(OSError):
            number = entry(block, "dev")
            if number not in in_domains and _may_have_zpool(block):
                name = entry(block, "dm/name")
                paths.append(
                    f"/dev/mapper/{name}"
                    if name
                    else "/dev/" + block.name.replace("!", "/")
                )
    return [path for path in paths if Path(path).exists()]


def _search_only(paths: Sequence[str]) -> list[str]:
    return [word for path in paths for word in ("-d", path)]


async def search_devices(paths: Sequence[str]) -> list[ImportableZpool]:
    """Return the zpools on the devices *paths* that are not imported.

    :raises CommandFailed: if zpool(8) refuses
    """
    if not paths:
        return []
    await commands.run("udevadm", "settle", "--timeout=10", ok=(0, 1, 127))
    _, text = await commands.run(
        "zpool", "import", *_search_only(paths), ok=(0, 1)
    )
    return list(parse(text))


def parse(text: str) -> Iterator[ImportableZpool]:
    """Yield the zpools in the output of ``zpool import``."""
    for part in re.split(r"^ *pool: ", text, flags=re.MULTILINE)[1:]:
        name = part.partition("\n")[0].strip()
        fields = dict(
            re.findall(r"^ *(id|state): *(.*?) *$", part, re.MULTILINE)
        )
        status = re.search(
            r"^ *status: (.*?)(?=^ *\w+: )", part, re.MULTILINE | re.DOTALL
        )
        tree = part.partition("config:")[2]
        yield ImportableZpool(
            name,
            fields.get("id", ""),
            fields.get("state", ""),
            " ".join(status[1].split()) if status else "",
            tuple(_broken(tree, name)),
        )


def _broken(tree: str, zpool: str) -> Iterator[str]:
    """Yield the missing and broken devices in the tree of ``zpool import``."""
    lines = [line for line in tree.split("\n") if line.strip()]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        words = line.split()
        leaf = _depth(below) <= _depth(line)
        if leaf and len(words) > 1 and words[0] != zpool:
            if words[1] not in ("ONLINE", "AVAIL"):
                yield f"{words[0]} ({' '.join(words[1:])})"


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


# --- importing, exporting


async def import_zpool(
    zpool_guid: str, paths: Sequence[str], altroot: str, force: bool = False
) -> None:
    """Import a zpool without mounting anything or loading a key.

    The zpool is not added to zpool.cache, so it is not imported at boot.  It
    gets commands.ZPOOL_PROPERTIES whatever is on the disk: failmode=panic, for
    example, would let a disk stop the machine.

    :param paths: the devices to search
    :param altroot: folder below which all mount points of the zpool are
    :param force: import it even if another machine did not export it
    :raises CommandFailed: if zpool(8) refuses
    """
    options = ["-N", "-o", "cachefile=none", "-R", altroot]
    for key, value in commands.ZPOOL_PROPERTIES.items():
        options += ["-o", f"{key}={value}"]
    if force:
        options.append("-f")
    await commands.run(
        "zpool", "import", *options, *_search_only(paths), zpool_guid
    )


async def wrong_zpool_property(zpool: str) -> tuple[str, str, str] | None:
    """Compare the properties of a zpool with commands.ZPOOL_PROPERTIES.

    :return: name, value and required value of the first property that differs;
        None if none does
    :raises CommandFailed: if zpool(8) refuses
    """
    properties = commands.ZPOOL_PROPERTIES
    _, text = await commands.run(
        "zpool", "get", "-Hp", "-o", "value", ",".join(properties), zpool
    )
    # a value is one word, so each line has one value
    values = text.split("\n")
    for (name, required), value in zip(properties.items(), values, strict=True):
        if value != required:
            return name, value, required
    return None


async def export_zpool(zpool: str) -> None:
    """Export a zpool; retry while udev probes it.

    :raises CommandFailed: if zpool(8) refuses
    """
    await commands.run_patiently("zpool", "export", zpool)


async def disks(zpool: str) -> list[str]:
    """Return the paths of the devices of an imported zpool.

    :raises CommandFailed: if zpool(8) refuses
    """
    _, text = await commands.run("zpool", "list", "-HPv", "-o", "name", zpool)
    words = [line.split()[0] for line in text.split("\n") if line.strip()]
    return [word for word in words if word.startswith("/")]


def mounted(zpool: str) -> list[str]:
    """Return the mount points of all mounted filesystems in a zpool."""
    mount_points = []
    for line in Path("/proc/self/mounts").read_text().split("\n"):
        words = line.split()
        if len(words) > 2 and words[2] == "zfs":
            if f"{words[0]}/".startswith(f"{zpool}/"):
                mount_points.append(words[1])
    return mount_points


async def volumes(dataset: str) -> list[str]:
    """Return all zvols in a zpool or below a dataset.

    :raises CommandFailed: if zfs(8) refuses
    """
    _, text = await commands.run(
        "zfs", "list", "-H", "-r", "-t", "volume", "-o", "name", dataset
    )
    return [line for line in text.split("\n") if "/" in line]


# --- no device node before a zpool was checked


@contextlib.asynccontextmanager
async def no_new_nodes() -> AsyncIterator[None]:
    """Keep ZFS from creating device nodes inside this context, in any zpool.

    If the properties of a zvol allow it, the kernel scans its new node for
    partitions, and udev scans it for filesystems.  Only this setting of the
    module keeps an import from creating nodes.

    It affects all zpools.  A zvol that is created in another zpool meanwhile
    gets its node when devices.wait_for_link() asks for it.  If a zvol is
    destroyed meanwhile, its node leads nowhere until its zpool is exported.

    SIGTERM and SIGHUP cancel the task instead of ending the process, so that
    the setting is restored.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    setting = os.open(commands.INHIBIT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # one process at a time, because the first to leave the context would
        # turn the setting off for all
        await lzc.in_thread(NO_ZPOOL, fcntl.flock, setting, fcntl.LOCK_EX)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, cast(_Task, task).cancel)
        try:
            os.write(setting, b"1")
            yield
        finally:
            os.write(setting, b"0")
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
    finally:
        os.close(setting)


async def create_nodes(dataset: str, only_if_missing: bool = False) -> None:
    """Have ZFS create the nodes of all zvols below *dataset*; wait for them.

    *dataset* has volmode=dev already.  Setting it again creates missing nodes
    (zvol_set_volmode_impl()).  This waits, because exporting a zpool while the
    kernel creates nodes is a deadlock (zvol_os_create_minor() and
    spa_export_common(); seen on 2.4.4).

    :param only_if_missing: do nothing if all nodes exist
    :raises CommandFailed: if zfs(8) refuses
    """
    links = [devices.link(name) for name in await volumes(dataset)]
    if only_if_missing and all(map(os.path.exists, links)):
        return
    await commands.set_property(dataset, "volmode", "dev")
    end = asyncio.get_running_loop().time() + devices.LINK_LIMIT
    while asyncio.get_running_loop().time() < end:
        if all(map(os.path.exists, links)):
            return
        await asyncio.sleep(0.1)
