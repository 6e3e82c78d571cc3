"""Zpools that come and go: looked for, imported, exported.

Whatever a disk that was away says is somebody's claim until it was looked at:
labels name a zpool, and its datasets say how dom0 is to treat them.
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
from .threads import NO_ZPOOL

_Task = asyncio.Task[Any]

#: where the guids of imported zpools are
_KSTAT = Path("/proc/spl/kstat/zfs")
#: what a running system can have a qube's data on: volumes of ZFS, files of
#: other pools, LVM's volumes; none of these is ever looked at for a zpool
_NEVER = re.compile(r"(zd|loop|ram|zram|sr|fd|nbd)[0-9]")
#: in lower case, in what zpool(8) says of one that somebody else may have
_ELSEWHERE = ("another system", "other system", "imported on", "multihost")


@dataclass(frozen=True)
class Found:
    """A zpool that is on some disks, as zpool(8) tells of it.

    :ivar state: ONLINE, DEGRADED, or else it cannot be imported
    :ivar status: what is wrong with it; empty if nothing is
    :ivar devices: those of it that are missing or broken
    """

    name: str
    guid: str
    state: str
    status: str
    devices: tuple[str, ...]

    @property
    def elsewhere(self) -> bool:
        """Whether another machine had it last, or has it now."""
        return had_elsewhere(self.status)


def had_elsewhere(text: str) -> bool:
    """Whether what zpool(8) says of a zpool is that another machine has it."""
    return any(words in text.lower() for words in _ELSEWHERE)


def guid(zpool: str) -> str | None:
    """The guid of an imported zpool; None if none of that name is."""
    try:
        return (_KSTAT / zpool / "guid").read_text("ascii").strip()
    except OSError:
        return None


def imported() -> list[str]:
    """Return the names of the imported zpools, of any kind, sorted."""
    return sorted(path.parent.name for path in _KSTAT.glob("*/guid"))


def names_of(which: str) -> list[str]:
    """Return the names of imported zpools that have the GUID *which*."""
    return [
        file.parent.name
        for file in sorted(_KSTAT.glob("*/guid"))
        if guid(file.parent.name) == which
    ]


def which_import(zpool: str) -> str | None:
    """Return a text that differs for each import of a zpool.

    Its GUID, and when the kernel created the statistics that it creates at
    each import (crtime in the header of a kstat, kstat_seq_show_headers()).

    :return: None if no zpool of that name is imported
    """
    try:
        with open(_KSTAT / zpool / "iostats", encoding="ascii") as file:
            header = file.readline().split()
    except OSError:
        return guid(zpool)
    created = header[5] if len(header) > 5 else ""
    return f"{guid(zpool)} {created}"


# --- looking for one


def _entry(block: Path, name: str) -> str:
    try:
        return (block / name).read_text().strip()
    except OSError:
        return ""


def _in_qubes() -> set[str]:
    """The numbers of the devices that running Xen domains have."""
    found = set()
    for backend in Path("/sys/bus/xen-backend/devices").glob("vbd-*"):
        major, _, minor = _entry(backend, "physical_device").partition(":")
        found.add(f"{int(major or '0', 16)}:{int(minor or '0', 16)}")
    return found


def _may_hold_one(block: Path) -> bool:
    """Whether a zpool may be on a block device, and no qube's data is.

    What something else is made of is left out: another volume's data may be
    where ZFS looks for a label.
    """
    if _NEVER.match(block.name) or _entry(block, "size") in ("", "0"):
        return False
    if _entry(block, "dm/uuid").startswith("LVM-"):
        return False
    parts = any((part / "partition").exists() for part in block.iterdir())
    return not parts and not any(block.glob("holders/*"))


def block_devices() -> list[str]:
    """Disks, partitions and LUKS devices that may hold a zpool."""
    found, in_qubes = [], _in_qubes()
    for block in sorted(Path("/sys/class/block").iterdir()):
        with contextlib.suppress(OSError):
            if _entry(block, "dev") not in in_qubes and _may_hold_one(block):
                name = _entry(block, "dm/name")
                found.append(
                    f"/dev/mapper/{name}"
                    if name
                    else "/dev/" + block.name.replace("!", "/")
                )
    return [path for path in found if Path(path).exists()]


def _looked_at(paths: Sequence[str]) -> list[str]:
    return [word for path in paths for word in ("-d", path)]


async def on_devices(paths: Sequence[str]) -> list[Found]:
    """The zpools on *paths* that are not imported.

    :raises CommandFailed: if zpool(8) refuses
    """
    if not paths:
        return []
    await commands.run("udevadm", "settle", "--timeout=10", ok=(0, 1, 127))
    _, text = await commands.run(
        "zpool", "import", *_looked_at(paths), ok=(0, 1)
    )
    return list(parse(text))


def parse(text: str) -> Iterator[Found]:
    """What ``zpool import`` lists."""
    for part in re.split(r"^ *pool: ", text, flags=re.MULTILINE)[1:]:
        name = part.partition("\n")[0].strip()
        fields = dict(
            re.findall(r"^ *(id|state): *(.*?) *$", part, re.MULTILINE)
        )
        status = re.search(
            r"^ *status: (.*?)(?=^ *\w+: )", part, re.MULTILINE | re.DOTALL
        )
        tree = part.partition("config:")[2]
        yield Found(
            name,
            fields.get("id", ""),
            fields.get("state", ""),
            " ".join(status[1].split()) if status else "",
            tuple(_broken(tree, name)),
        )


def _broken(tree: str, zpool: str) -> Iterator[str]:
    """The devices in a listing that are not as they should be."""
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


async def take_in(
    which: str, paths: Sequence[str], altroot: str, force: bool = False
) -> None:
    """Import the zpool with the guid *which*: nothing is mounted, no key is
    loaded, and no boot imports it by itself.

    It gets the properties that commands.create_zpool() gives a zpool, whatever
    the disk says: failmode=panic, for one, lets a disk stop the machine.

    :param altroot: what its mount points are below
    :param force: also if another machine had it last, and did not export it
    :raises CommandFailed: if zpool(8) refuses
    """
    options = ["-N", "-o", "cachefile=none", "-R", altroot]
    for key, value in commands.ZPOOL_PROPERTIES.items():
        options += ["-o", f"{key}={value}"]
    if force:
        options.append("-f")
    await commands.run("zpool", "import", *options, *_looked_at(paths), which)


async def wrong_zpool_property(zpool: str) -> tuple[str, str, str] | None:
    """Compare with native.ZPOOL_PROPERTIES; each value is one of few words.

    :return: the first property that differs, its value and the right one
    :raises CommandFailed: if zpool(8) refuses
    """
    wanted = commands.ZPOOL_PROPERTIES
    _, text = await commands.run(
        "zpool", "get", "-Hp", "-o", "value", ",".join(wanted), zpool
    )
    values = text.split("\n")
    for (name, right), value in zip(wanted.items(), values, strict=True):
        if value != right:
            return name, value, right
    return None


async def give_back(zpool: str) -> None:
    """Export it; tried again while somebody is only looking at it.

    :raises CommandFailed: if zpool(8) refuses
    """
    await commands.run_patiently("zpool", "export", zpool)


async def disks(zpool: str) -> list[str]:
    """What an imported zpool is on.

    :raises CommandFailed: if zpool(8) refuses
    """
    _, text = await commands.run("zpool", "list", "-HPv", "-o", "name", zpool)
    words = [line.split()[0] for line in text.split("\n") if line.strip()]
    return [word for word in words if word.startswith("/")]


def mounted(zpool: str) -> list[str]:
    """Where filesystems of it are mounted."""
    found = []
    for line in Path("/proc/self/mounts").read_text().split("\n"):
        words = line.split()
        if len(words) > 2 and words[2] == "zfs":
            if f"{words[0]}/".startswith(f"{zpool}/"):
                found.append(words[1])
    return found


async def volumes(dataset: str) -> list[str]:
    """All zvols in a zpool, or below a dataset.

    :raises CommandFailed: if zfs(8) refuses
    """
    _, text = await commands.run(
        "zfs", "list", "-H", "-r", "-t", "volume", "-o", "name", dataset
    )
    return [line for line in text.split("\n") if "/" in line]


# --- no node before it was looked at


@contextlib.asynccontextmanager
async def no_new_nodes() -> AsyncIterator[None]:
    """Within this, ZFS makes no device nodes: of no zvol, in no zpool.

    The kernel looks for partitions in a new node, and udev for filesystems,
    as the zvol's own properties let them.  Nothing but this setting of the
    module keeps an import from making nodes.  What is made in another zpool
    meanwhile gets its node when devices.wait_for_link() asks for it; the node
    of what is destroyed meanwhile stays until its zpool is exported, and
    leads nowhere.

    Signals that would end this process end the task instead, so that the
    setting is what it was.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    setting = os.open(commands.INHIBIT, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # one process at a time: the first that ends would end it for all
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


async def make_nodes(home: str, only_if_missing: bool = False) -> None:
    """Have ZFS make the nodes of all zvols below *home*, which is volmode=dev
    already and stays so (zvol_set_volmode_impl()).

    They are waited for: if the zpool is exported while the kernel makes them,
    both wait for each other for ever (zvol_os_create_minor() for the export,
    spa_export_common() for it; seen on 2.4.4).

    :param only_if_missing: do nothing if all of them are there
    :raises CommandFailed: if zfs(8) refuses
    """
    links = [devices.link(name) for name in await volumes(home)]
    if only_if_missing and all(map(os.path.exists, links)):
        return
    await commands.set_property(home, "volmode", "dev")
    end = asyncio.get_running_loop().time() + devices.LINK_LIMIT
    while asyncio.get_running_loop().time() < end:
        if all(map(os.path.exists, links)):
            return
        await asyncio.sleep(0.1)
