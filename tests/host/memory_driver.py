# SPDX-License-Identifier: BSD-2-Clause
"""The driver "memory": it stores files, records calls, and can fail."""

import asyncio
import os
import pathlib
from typing import ClassVar

import qubes.exc
import qubes.storage


class MemoryVolume(qubes.storage.Volume):
    """Record calls in the class of the pool, and store data in a file."""

    @property
    def path(self):
        """Return the file with the data."""
        return os.path.join(MemoryPool.folder, self.vid.replace("/", "+"))

    @property
    def revisions(self):
        """Return one revision, always the same."""
        return {"first": "2020-01-01T00:00:00"}

    async def _call(self, method):
        MemoryPool.calls.append(f"{method} {self.vid}")
        await asyncio.sleep(0)
        if f"{method} {self.vid}" in MemoryPool.failing:
            raise qubes.exc.StoragePoolException(f"{method} refused")

    async def create(self):
        await self._call("create")
        with open(self.path, "wb") as image:
            image.truncate(self.size)

    async def remove(self):
        await self._call("remove")
        if os.path.exists(self.path):
            os.remove(self.path)

    async def start(self):
        await self._call("start")

    async def stop(self):
        await self._call("stop")

    async def verify(self):
        await self._call("verify")

    async def export(self):
        await self._call("export")
        return self.path

    async def export_end(self, path):
        await self._call("export_end")

    async def import_data(self, size):
        await self._call("import_data")
        os.truncate(self.path, 0)
        os.truncate(self.path, size)
        self._size = size
        return self.path

    async def import_data_end(self, success):
        await self._call(f"import_data_end({success})")

    async def import_volume(self, src_volume):
        await self._call("import_volume")
        data = pathlib.Path(src_volume.path).read_bytes()
        pathlib.Path(self.path).write_bytes(data)
        return type(self)(**{**self.config, "pool": self.pool})

    async def resize(self, size):
        await self._call("resize")
        self._size = size

    async def revert(self, revision=None):
        await self._call(f"revert({revision})")


class MemoryPool(qubes.storage.Pool):
    """A driver that records how it was created."""

    calls: ClassVar[list] = []
    failing: ClassVar[set] = set()
    configs: ClassVar[list] = []
    folder = ""

    def __init__(self, *, name, colour, revisions_to_keep=1, **kwargs):
        self.made_with = dict(colour=colour, keep=revisions_to_keep, **kwargs)
        self.calls.append(f"init {name}")
        kwargs.pop("extra", None)
        super().__init__(
            name=name, revisions_to_keep=revisions_to_keep, **kwargs
        )
        self.colour = colour

    @property
    def config(self):
        return {
            "name": self.name,
            "driver": "memory",
            "colour": self.colour,
            "revisions_to_keep": self.revisions_to_keep,
            "ephemeral_volatile": self.ephemeral_volatile,
        }

    async def setup(self):
        self.calls.append(f"setup {self.name}")
        if self.colour == "broken":
            raise qubes.exc.StoragePoolException("no such colour")

    def init_volume(self, vm, volume_config):
        self.configs.append((vm.name, dict(volume_config)))
        config = dict(volume_config, pool=self)
        config.setdefault("vid", f"{vm.name}/{config['name']}")
        return MemoryVolume(**config)

    def get_volume(self, vid):
        return MemoryVolume(vid.split("/")[1], self, vid, save_on_stop=True)
