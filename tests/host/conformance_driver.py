# SPDX-License-Identifier: BSD-2-Clause
"""A driver and qubes that record each call."""

import asyncio
import logging
import os
import subprocess
from typing import Any, ClassVar

import qubes.storage

LOG = []
FAIL: dict[str, str] = {}
KINDS = {
    "driver": lambda: qubes.exc.StoragePoolException("refused"),
    "system": lambda: OSError(5, "broken"),
    "program": lambda: subprocess.CalledProcessError(1, "tool"),
    "key": lambda: KeyError("missing"),
}


def note(*words):
    """Record what happens."""
    LOG.append(" ".join(str(word) for word in words))


def fail(method, name):
    """Raise an error if this call must fail."""
    kind = FAIL.get(f"{method} {name}") or FAIL.get(f"{method} *")
    if kind:
        note("fail", method, name)
        raise KINDS[kind]()


class RecVolume(qubes.storage.Volume):
    """Record each call, and let chosen calls fail."""

    usage = 7
    path = "/dev/null"
    revisions: ClassVar[dict] = {}

    async def _call(self, method, *args):
        note(method, self.name, *args)
        await asyncio.sleep(0)
        fail(method, self.name)
        note(method, self.name, "done")

    async def create(self):
        await self._call("create")

    async def remove(self):
        await self._call("remove")

    @qubes.storage.Volume.locked
    async def start(self):
        await self._call("start")

    @qubes.storage.Volume.locked
    async def stop(self):
        await self._call("stop")

    async def verify(self):
        await self._call("verify")

    async def export(self):
        await self._call("export")
        return "/dev/null"

    async def export_end(self, path):
        await self._call("export_end", path)

    async def import_data(self, size):
        await self._call("import_data", size)
        return "/dev/null"

    async def import_data_end(self, success):
        await self._call("import_data_end", success)

    async def import_volume(self, src_volume):
        await self._call("import_volume", src_volume.vid)
        return self

    async def resize(self, size):
        await self._call("resize", size)
        self._size = size

    def is_outdated(self):
        note("is_outdated", self.name)
        return self.snap_on_start


class SyncVolume(RecVolume):
    """A volume with plain functions, which a driver may have too."""

    def create(self):
        note("sync create", self.name)

    def remove(self):
        note("sync remove", self.name)
        fail("remove", self.name)

    def stop(self):
        note("sync stop", self.name)

    def import_volume(self, src_volume):
        note("sync import_volume", self.name)
        fail("import_volume", self.name)
        return self


class RecPool(qubes.storage.Pool):
    """Record each call."""

    volume_class = RecVolume

    def __init__(self, *, name, colour, revisions_to_keep=1, **kwargs):
        note("pool init", name, repr(colour), repr(revisions_to_keep))
        fail("pool", name)
        super().__init__(
            name=name, revisions_to_keep=revisions_to_keep, **kwargs
        )
        self.colour = colour
        self.volumes_by_vid = {}

    @property
    def config(self):
        return {
            "name": self.name,
            "driver": "rec",
            "colour": self.colour,
            "revisions_to_keep": self.revisions_to_keep,
            "ephemeral_volatile": self.ephemeral_volatile,
        }

    async def setup(self):
        note("setup", self.name)
        fail("setup", self.name)

    def init_volume(self, vm, volume_config):
        config = {
            key: str(value) if key in ("pool", "source") else value
            for key, value in volume_config.items()
        }
        if config["name"] != "kernel":
            note("init_volume", self.name, vm.name, sorted(config.items()))
        config = dict(volume_config, pool=self)
        config.setdefault("vid", f"{vm.name}/{config['name']}")
        volume = self.volume_class(**config)
        self.volumes_by_vid[volume.vid] = volume
        return volume

    def get_volume(self, vid):
        note("get_volume", vid)
        return self.volumes_by_vid[vid]

    def list_volumes(self):
        return list(self.volumes_by_vid.values())


class FakeVM:
    """The part of a qube that Storage uses."""

    klass = "AppVM"
    running = False

    def __init__(self, app, name, volume_config, template=None):
        self.app = app
        self.name = name
        self.log = logging.getLogger(name)
        self.volume_config = volume_config
        self.volumes = {}
        self.template = template
        self.dispvms = []
        self.service_fails = False
        self.dir_path = os.path.join(app.base, name)
        os.makedirs(self.dir_path, exist_ok=True)
        self.storage = qubes.storage.Storage(self)

    def is_running(self):
        return self.running

    def is_halted(self):
        return not self.running

    def fire_event(self, event, **kwargs):
        note("event", event, sorted(kwargs))

    async def fire_event_async(self, event, **kwargs):
        note("async event", event, sorted(kwargs))

    async def run_service_for_stdio(self, service, **kwargs):
        note("service", service, sorted(kwargs.items()))
        if self.service_fails:
            raise subprocess.CalledProcessError(1, "x", b"", b"50% done\xff")


class FakeApp:
    """Two pools; one of them is the default."""

    def __init__(self, base, volume_class):
        self.base = base
        self.pools = {}
        for name in "one", "two":
            pool = RecPool(name=name, colour="red")
            pool.volume_class = volume_class
            self.pools[name] = pool
        self.default_pool_root = self.default_pool_private = "one"
        self.default_pool_volatile = self.pools["two"]

    def get_pool(self, pool):
        if isinstance(pool, qubes.storage.Pool):
            return pool
        return self.pools[pool]


def volume_config(root_source=False):
    """Return the config of a qube with an own root volume, or a snapshot."""
    keys = {"rw": True, "snap_on_start": False, "save_on_stop": True}
    root: dict[str, Any] = {**keys, "size": 4096}
    if root_source:
        root.update(snap_on_start=True, save_on_stop=False, source=None)
    return {
        "root": root,
        "private": {**keys, "size": "8192"},
        "volatile": {**keys, "save_on_stop": False, "size": 16},
    }
