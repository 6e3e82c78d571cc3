# SPDX-License-Identifier: BSD-2-Clause
"""The measured drivers, called through the API that qubesd uses.

A contender has a template with a root volume.  Its qubes have a root, which is
a clone of the template's, a private volume and a volatile one.
"""

import asyncio
import itertools
import os
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tests.support.zpools import sh

from .common import MIB

ROOT, PRIVATE, VOLATILE = 256 * MIB, 64 * MIB, 128 * MIB
#: bytes written to the template's root
FILLED = 32 * MIB

_numbers = itertools.count(1)


def make_zpool(name: str, disk: str) -> None:
    sh("zpool", "create", "-f", "-o", "ashift=12", "-m", "none", name, disk)


def make_thin_pool(group: str, name: str, disk: str) -> None:
    sh("vgcreate", "-y", "-f", group, disk)
    thin = "lvcreate", "-y", "-q", "--type", "thin-pool", "-l", "90%FREE"
    sh(*thin, "-n", name, group)


def make_file_system(kind: str, disk: str, place: str) -> None:
    """Create a file system on *disk* and mount it at *place*."""
    os.makedirs(place, exist_ok=True)
    sh(f"mkfs.{kind}", "-f", disk)
    sh("mount", disk, place)


def fill(path: str) -> None:
    """Write random data to the first FILLED bytes, and flush it."""
    with open(path, "r+b") as file:
        for _ in range(FILLED // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file)


class Contender(ABC):
    """One way to store qubes.

    :ivar name: its name in tables
    :ivar zpool: its zpool, if it has one, to count transaction groups
    """

    name: str
    zpool: str | None = None

    @abstractmethod
    async def setup(self, disk: str) -> None:
        """Set up an empty disk, and create the template."""

    @abstractmethod
    async def create(self, qube: str) -> None:
        """Create an empty private volume."""

    @abstractmethod
    async def start(self, qube: str) -> None:
        """Start root, private and volatile."""

    @abstractmethod
    async def stop(self, qube: str) -> None:
        """Commit private, and discard the others."""

    @abstractmethod
    def paths(self, qube: str) -> list[str]:
        """Return the devices of private, root and volatile."""

    @abstractmethod
    async def revisions(self, qube: str) -> None:
        """List the revisions of the private volume."""

    @abstractmethod
    async def usage(self, qube: str) -> None:
        """Read the space that the private volume uses."""

    @abstractmethod
    async def pool(self) -> None:
        """Size and usage of it all."""

    @abstractmethod
    async def revert(self, qube: str) -> None:
        """Revert the private volume to its newest revision."""

    @abstractmethod
    async def clone(self, qube: str, copy: str) -> None:
        """Replace the private volume of the existing *copy* by a clone."""

    @abstractmethod
    async def export(self, qube: str) -> None:
        """Start and finish an export of the private volume."""

    @abstractmethod
    async def remove(self, qube: str) -> None:
        """Remove the private volume and all its revisions."""


class Driver(Contender):
    """A pool driver."""

    def __init__(self, name: str, kind: type, options: dict[str, Any]) -> None:
        self.name, self.kind, self.options = name, kind, options
        self.qubes: dict[str, dict[str, Any]] = {}

    async def setup(self, disk: str) -> None:
        self.prepare(disk)
        self.store = self.kind(name=f"bench{next(_numbers)}", **self.options)
        await self.store.setup()
        self.root = self._volume(
            "template", "root", ROOT, save_on_stop=True, prefix="vm-templates"
        )
        await self.root.create()
        fill(await self.root.import_data(ROOT))
        await self.root.import_data_end(True)

    def prepare(self, disk: str) -> None:
        """Create on the disk what the driver's options name."""
        raise NotImplementedError

    def _volume(
        self,
        qube: str,
        name: str,
        size: int,
        prefix: str = "appvms",
        **more: Any,
    ) -> Any:
        vm = types.SimpleNamespace(name=qube, dir_path_prefix=prefix, app=None)
        config = {
            "name": name,
            "pool": self.store.name,
            "size": size,
            "rw": True,
            "snap_on_start": False,
            "save_on_stop": False,
            **more,
        }
        return self.store.init_volume(vm, config)

    async def create(self, qube: str) -> None:
        self.qubes[qube] = {
            "root": self._volume(
                qube, "root", ROOT, snap_on_start=True, source=self.root
            ),
            "private": self._volume(
                qube, "private", PRIVATE, save_on_stop=True
            ),
            "volatile": self._volume(qube, "volatile", VOLATILE),
        }
        volumes = self.qubes[qube].values()
        await asyncio.gather(*(volume.create() for volume in volumes))

    async def start(self, qube: str) -> None:
        volumes = self.qubes[qube].values()
        await asyncio.gather(*(volume.start() for volume in volumes))
        for volume in volumes:
            _state_file(volume).touch()

    async def stop(self, qube: str) -> None:
        volumes = self.qubes[qube].values()
        await asyncio.gather(*(volume.stop() for volume in volumes))
        for volume in volumes:
            _state_file(volume).unlink(missing_ok=True)

    def paths(self, qube: str) -> list[str]:
        return [
            str(volume.block_device().path)
            for volume in self.qubes[qube].values()
        ]

    async def revisions(self, qube: str) -> None:
        assert self.qubes[qube]["private"].revisions

    async def usage(self, qube: str) -> None:
        assert self.qubes[qube]["private"].usage >= 0

    async def pool(self) -> None:
        assert self.store.size > 0
        assert self.store.usage >= 0

    async def revert(self, qube: str) -> None:
        await self.qubes[qube]["private"].revert()

    async def clone(self, qube: str, copy: str) -> None:
        source = self.qubes[qube]["private"]
        await self.qubes[copy]["private"].import_volume(source)

    async def export(self, qube: str) -> None:
        volume = self.qubes[qube]["private"]
        await volume.export_end(await volume.export())

    async def remove(self, qube: str) -> None:
        volumes = self.qubes.pop(qube).values()
        await asyncio.gather(*(volume.remove() for volume in volumes))


def _state_file(volume: Any) -> Path:
    path = Path(volume.state_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class OnZpool(Driver):
    """A driver whose pool is a dataset in a zpool."""

    def prepare(self, disk: str) -> None:
        zpool = self.options["container"].partition("/")[0]
        self.zpool = zpool
        make_zpool(zpool, disk)


class OnThinPool(Driver):
    """The driver lvm_thin."""

    def prepare(self, disk: str) -> None:
        options = self.options
        make_thin_pool(options["volume_group"], options["thin_pool"], disk)


class OnFiles(Driver):
    """The driver file-reflink."""

    def __init__(self, name: str, kind: type, file_system: str) -> None:
        self.file_system = file_system
        super().__init__(name, kind, {"dir_path": f"/mnt/{file_system}"})

    def prepare(self, disk: str) -> None:
        make_file_system(self.file_system, disk, self.options["dir_path"])
