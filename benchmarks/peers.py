# SPDX-License-Identifier: BSD-2-Clause
"""The commands of the other drivers, for machines without these drivers.

Each class runs the same programs in the same order as a driver, and waits for
the same events.  It has none of the driver's code.  If a driver's cache saves a
command, the class does not run it either.
"""

import asyncio
import fcntl
import os
from pathlib import Path

from tests.support.zpools import sh

from .contenders import (
    PRIVATE,
    ROOT,
    VOLATILE,
    Contender,
    fill,
    make_file_system,
    make_thin_pool,
    make_zpool,
)

FICLONE = 0x40049409  # linux/fs.h


async def run(*command: str) -> str:
    """Run a program as a child process, as the drivers do."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command}: {errors.decode()}")
    return out.decode()


async def appears(path: str) -> None:
    """Wait for a path; check every 10 ms."""
    while not os.path.exists(path):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class ZfsCommands(Contender):
    """core-admin's driver zfs: a `zfs` process for each step, one at a time."""

    name = "zfs commands"
    DIRTY = "org.qubes:dirty"

    zpool: str

    def __init__(self, zpool: str) -> None:
        self.zpool = zpool
        self.lock = asyncio.Lock()
        self.number = 0
        #: the newest revision of each private volume
        self.newest: dict[str, str] = {}

    def _dataset(self, qube: str, name: str) -> str:
        return f"{self.zpool}/{qube}/{name}"

    def _device(self, dataset: str) -> str:
        return f"/dev/zvol/{dataset}"

    async def _list(self, dataset: str) -> str:
        columns = "name,creation,readonly,volsize,org.qubes:dirty"
        return await run("zfs", "list", "-Hp", "-o", columns, dataset)

    async def _snapshot(self, dataset: str, cause: str) -> str:
        self.number += 1
        snapshot = f"{dataset}@qubes-{cause}-{self.number}"
        await run("zfs", "snapshot", snapshot)
        return snapshot

    async def _set(self, dataset: str, name: str, value: str) -> None:
        await run("zfs", "set", f"{name}={value}", dataset)

    async def _new(self, dataset: str, size: int) -> None:
        await run("zfs", "create", "-p", "-s", "-V", str(size), dataset)
        await appears(self._device(dataset))

    async def setup(self, disk: str) -> None:
        make_zpool(self.zpool, disk)
        sh("zfs", "set", "volmode=dev", "snapdev=hidden", self.zpool)
        sh("zfs", "set", "org.qubes-os:part-of-qvm-pool=true", self.zpool)
        root = self._dataset("template", "root")
        await self._new(root, ROOT)
        fill(self._device(root))
        self.clean = await self._snapshot(root, "clean")

    async def create(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        async with self.lock:
            await self._new(dataset, PRIVATE)
            self.newest[dataset] = await self._snapshot(dataset, "create")
            await self._snapshot(dataset, "clean")

    async def _start_root(self, qube: str) -> None:
        dataset = self._dataset(qube, "root")
        async with self.lock:
            await run("zfs", "clone", "-p", self.clean, dataset)
            await appears(self._device(dataset))
            await self._set(dataset, self.DIRTY, "on")
            await self._set(dataset, "readonly", "off")

    async def _start_private(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        async with self.lock:
            await self._list(dataset)
            self.newest[dataset] = await self._snapshot(dataset, "start")
            await self._set(dataset, self.DIRTY, "on")
            await self._set(dataset, "readonly", "off")

    async def _start_volatile(self, qube: str) -> None:
        dataset = self._dataset(qube, "volatile")
        async with self.lock:
            await self._new(dataset, VOLATILE)
            await self._set(dataset, "readonly", "off")

    async def start(self, qube: str) -> None:
        await asyncio.gather(
            self._start_root(qube),
            self._start_private(qube),
            self._start_volatile(qube),
        )

    async def _drop(self, dataset: str) -> None:
        async with self.lock:
            for _ in range(80):
                try:
                    await run("zfs", "destroy", "-r", dataset)
                    return
                except RuntimeError:
                    await asyncio.sleep(0.25)
            raise RuntimeError(f"{dataset} stays busy")

    async def _stop_private(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        async with self.lock:
            await self._set(dataset, self.DIRTY, "off")
            await self._snapshot(dataset, "clean")

    async def stop(self, qube: str) -> None:
        await asyncio.gather(
            self._drop(self._dataset(qube, "root")),
            self._stop_private(qube),
            self._drop(self._dataset(qube, "volatile")),
        )

    def paths(self, qube: str) -> list[str]:
        return [
            self._device(self._dataset(qube, name))
            for name in ("private", "root", "volatile")
        ]

    async def revisions(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        await run(*"zfs list -Hp -t snapshot -o name,creation".split(), dataset)

    async def usage(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        await run(*"zfs list -Hp -o name,logicalreferenced".split(), dataset)

    async def pool(self) -> None:
        for column in "size", "allocated":
            await run("zpool", "list", "-Hp", "-o", column, self.zpool)

    async def revert(self, qube: str) -> None:
        dataset = self._dataset(qube, "private")
        async with self.lock:
            await self.revisions(qube)
            await run("zfs", "rollback", "-r", self.newest[dataset])
            await self._snapshot(dataset, "clean")

    async def clone(self, qube: str, copy: str) -> None:
        source = self._dataset(qube, "private")
        target = self._dataset(copy, "private")
        async with self.lock:
            snapshot = await self._snapshot(source, "clone")
            await run("zfs", "clone", "-p", snapshot, target + "-new")
            await appears(self._device(target + "-new"))
            await run("zfs", "destroy", "-r", target)
            await run("zfs", "rename", target + "-new", target)
            await appears(self._device(target))
            await self._snapshot(target, "clean")

    async def export(self, qube: str) -> None:
        source = self._dataset(qube, "private")
        export = source + "-export"
        async with self.lock:
            self.newest[source] = await self._snapshot(source, "export")
            await run("zfs", "clone", self.newest[source], export)
            await appears(self._device(export))
        await self._drop(export)

    async def remove(self, qube: str) -> None:
        async with self.lock:
            dataset = self._dataset(qube, "private")
            await run("zfs", "destroy", "-R", dataset)


class ThinCommands(Contender):
    """The driver lvm_thin: an `lvm` process for each step."""

    name = "lvm commands"

    def __init__(self, group: str) -> None:
        self.group = group
        self.number = 0
        #: the revisions of each qube
        self.revisions_of: dict[str, list[str]] = {}

    def _device(self, volume: str) -> str:
        return f"/dev/{self.group}/{volume}"

    async def _lvm(self, *words: str) -> str:
        return await run("lvm", *words)

    async def _new(self, volume: str, size: int) -> None:
        await self._lvm(
            *("lvcreate", "-q", "-kn", "-ay", "-V", f"{size}B"),
            *("-T", f"{self.group}/pool", "-n", volume),
        )

    async def _snapshot(self, source: str, volume: str) -> None:
        await self._lvm(
            *("lvcreate", "-q", "-kn", "-ay", "-s"),
            *(f"{self.group}/{source}", "-n", volume),
        )

    async def _drop(self, volume: str) -> None:
        await self._lvm("lvremove", "-q", "-f", f"{self.group}/{volume}")

    async def _rename(self, old: str, new: str) -> None:
        await self._lvm("lvrename", "-q", self.group, old, new)

    async def _replace(self, qube: str, new: str) -> str:
        """Replace the private volume by *new*; return the new revision.

        The old private volume becomes this revision.
        """
        self.number += 1
        back = f"{qube}-private-{self.number}-back"
        await self._rename(f"{qube}-private", back)
        await self._rename(new, f"{qube}-private")
        await self._read_cache()
        return back

    async def _read_cache(self) -> None:
        """Read the state of all volumes, as the driver does after a change."""
        columns = "vg_name,pool_lv,name,lv_size,data_percent,lv_attr,origin"
        await self._lvm(
            *("lvs", "--noheadings", "-o", columns, "--units", "b"),
            *("--separator", ";", self.group),
        )

    async def setup(self, disk: str) -> None:
        make_thin_pool(self.group, "pool", disk)
        await self._new("template-root", ROOT)
        fill(self._device("template-root"))

    async def create(self, qube: str) -> None:
        await self._new(f"{qube}-private", PRIVATE)
        await self._read_cache()

    async def start(self, qube: str) -> None:
        async def root() -> None:
            await self._snapshot("template-root", f"{qube}-root-snap")
            await self._read_cache()

        async def private() -> None:
            await self._snapshot(f"{qube}-private", f"{qube}-private-snap")
            await self._read_cache()

        async def volatile() -> None:
            await self._new(f"{qube}-volatile", VOLATILE)
            await self._read_cache()

        await asyncio.gather(root(), private(), volatile())

    async def stop(self, qube: str) -> None:
        async def drop(volume: str) -> None:
            await self._drop(volume)
            await self._read_cache()

        async def private() -> None:
            revisions = self.revisions_of.setdefault(qube, [])
            revisions.append(await self._replace(qube, f"{qube}-private-snap"))
            if len(revisions) > 2:
                await self._drop(revisions.pop(0))
                await self._read_cache()

        await asyncio.gather(
            drop(f"{qube}-root-snap"), private(), drop(f"{qube}-volatile")
        )

    def paths(self, qube: str) -> list[str]:
        names = "private-snap", "root-snap", "volatile"
        return [self._device(f"{qube}-{name}") for name in names]

    async def revisions(self, qube: str) -> None:
        """Run nothing: the answer is in the driver's cache."""

    async def usage(self, qube: str) -> None:
        """Run nothing: the answer is in the driver's cache."""

    async def pool(self) -> None:
        """Run nothing: the answer is in the driver's cache."""

    async def revert(self, qube: str) -> None:
        await self._drop(f"{qube}-private")
        await self._snapshot(self.revisions_of[qube][-1], f"{qube}-private")
        await self._read_cache()

    async def clone(self, qube: str, copy: str) -> None:
        await self._snapshot(f"{qube}-private", f"{copy}-private-import")
        await self._read_cache()
        await self._replace(copy, f"{copy}-private-import")

    async def export(self, qube: str) -> None:
        """Run nothing: the existing device of the volume is read."""

    async def remove(self, qube: str) -> None:
        volumes = [
            path.name
            for path in Path(f"/dev/{self.group}").glob(f"{qube}-private*")
        ]
        for volume in volumes:
            await self._drop(volume)
        await self._read_cache()


class Files(Contender):
    """The driver file-reflink: files that share blocks."""

    def __init__(self, file_system: str) -> None:
        self.file_system = file_system
        self.name = f"files on {file_system}"
        self.place = Path(f"/mnt/{file_system}-files")
        self.number = 0

    def _path(self, qube: str, name: str) -> Path:
        return self.place / qube / f"{name}.img"

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        temporary = target.with_name(target.name + "~")
        with open(source, "rb") as old, open(temporary, "wb") as new:
            fcntl.ioctl(new, FICLONE, old.fileno())
            os.fsync(new)
        _rename(temporary, target)

    @staticmethod
    def _new(path: Path, size: int) -> None:
        with open(path, "wb") as file:
            file.truncate(size)

    def _revisions(self, qube: str) -> list[Path]:
        """Return the revisions, oldest first."""
        return sorted(
            (self.place / qube).glob("private.img@*"),
            key=lambda path: int(path.name.rpartition("@")[2]),
        )

    def _keep(self, qube: str) -> None:
        """Copy the private volume to a new revision."""
        self.number += 1
        clean = self._path(qube, "private")
        self._copy(clean, clean.with_name(f"private.img@{self.number}"))

    async def setup(self, disk: str) -> None:
        make_file_system(self.file_system, disk, str(self.place))
        (self.place / "template").mkdir()
        root = self._path("template", "root")
        self._new(root, ROOT)
        fill(str(root))

    async def create(self, qube: str) -> None:
        def work() -> None:
            (self.place / qube).mkdir()
            self._new(self._path(qube, "private"), PRIVATE)

        await asyncio.to_thread(work)

    async def start(self, qube: str) -> None:
        await asyncio.gather(
            asyncio.to_thread(
                self._copy,
                self._path("template", "root"),
                self._path(qube, "root-dirty"),
            ),
            asyncio.to_thread(
                self._copy,
                self._path(qube, "private"),
                self._path(qube, "private-dirty"),
            ),
            asyncio.to_thread(
                self._new, self._path(qube, "volatile"), VOLATILE
            ),
        )

    async def stop(self, qube: str) -> None:
        def private() -> None:
            self._keep(qube)
            dirty = self._path(qube, "private-dirty")
            _rename(dirty, self._path(qube, "private"))
            for path in self._revisions(qube)[:-2]:
                path.unlink()

        await asyncio.gather(
            asyncio.to_thread(private),
            asyncio.to_thread(self._path(qube, "root-dirty").unlink),
            asyncio.to_thread(self._path(qube, "volatile").unlink),
        )

    def paths(self, qube: str) -> list[str]:
        names = "private-dirty", "root-dirty", "volatile"
        return [str(self._path(qube, name)) for name in names]

    async def revisions(self, qube: str) -> None:
        assert self._revisions(qube)

    async def usage(self, qube: str) -> None:
        assert self._path(qube, "private").stat().st_blocks >= 0

    async def pool(self) -> None:
        assert os.statvfs(self.place).f_blocks

    async def revert(self, qube: str) -> None:
        def work() -> None:
            newest = self._revisions(qube)[-1]
            self._keep(qube)
            self._copy(newest, self._path(qube, "private"))

        await asyncio.to_thread(work)

    async def clone(self, qube: str, copy: str) -> None:
        await asyncio.to_thread(
            self._copy, self._path(qube, "private"), self._path(copy, "private")
        )

    async def export(self, qube: str) -> None:
        """Run nothing: the file itself is read."""

    async def remove(self, qube: str) -> None:
        def work() -> None:
            for path in (self.place / qube).iterdir():
                path.unlink()

        await asyncio.to_thread(work)


def _rename(old: Path, new: Path) -> None:
    """Rename a file and flush its folder, as the driver does."""
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.rename(old, new)
        os.fsync(folder)
    finally:
        os.close(folder)
