# SPDX-License-Identifier: BSD-2-Clause
"""A pool on a real zpool, and operations of a test on the pool."""

import asyncio
import itertools
import time
import types
from pathlib import Path
from xml.etree import ElementTree

from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.driver.lifecycle import Lifecycle
from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.policy import ROOT_SETTINGS
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import keyholder, keys, lzc, runtime

from .background import settled
from .prompts import PASSPHRASE
from .zpools import MIB, read, sh, write

_numbers = itertools.count(1)
# a defect of the lifecycle fails the test
Lifecycle.strict = True


def configure(*configs):
    """Write a qubes.xml with these pools; qubesd does not run."""
    root = ElementTree.Element("qubes")
    pools = ElementTree.SubElement(root, "pools")
    for config in configs:
        attributes = {name: str(value) for name, value in config.items()}
        ElementTree.SubElement(pools, "pool", attributes)
    common.QUBES_XML.parent.mkdir(exist_ok=True)
    common.QUBES_XML.unlink(missing_ok=True)
    common.QUBES_XML.write_bytes(ElementTree.tostring(root))


class Lab:
    """One pool in a container of its own, and operations on its volumes."""

    kind: type[ZfsZvolPool] | type[ZfsEncryptedPool] = ZfsZvolPool

    def __init__(self, zpool, **options):
        self.name = f"pool-t{next(_numbers)}"
        self.container, where = self._place(zpool)
        self.options = {**where, **options}
        self.pool = self.add(self.name, **self.options)
        self.app = types.SimpleNamespace(pools={self.name: self.pool})

    def _place(self, zpool):
        container = f"{zpool}/{self.name}"
        return container, {"container": container}

    def run(self, awaitable):
        return asyncio.run(settled(awaitable))

    def add(self, name, **options):
        pool = self.kind(name=name, **options)
        self.run(pool.setup())
        return pool

    def vm(self, name):
        return types.SimpleNamespace(name=name, app=None)

    def volume(self, qube="work", name="private", pool=None, **config):
        """Return a volume object; nothing is on disk yet."""
        pool = pool or self.pool
        config = {
            "name": name,
            "pool": pool.name,
            "rw": True,
            "size": 4 * MIB,
            **config,
        }
        return pool.init_volume(self.vm(qube), config)

    def private(self, qube="work", content=None, **config):
        """Create a volume that is saved on stop, and commit *content*."""
        volume = self.volume(qube, save_on_stop=True, **config)
        self.run(volume.create())
        if content is not None:
            self.session(volume, content)
        return volume

    def clone_of(self, source, qube="app", **config):
        return self.volume(
            qube, "root", source=source, snap_on_start=True, **config
        )

    def volatile(self, qube="work", **config):
        return self.volume(qube, "volatile", **config)

    # sessions of a qube, in the order of Storage.start() and stop()

    def start(self, *volumes):
        for volume in volumes:
            self.run(volume.start())
            Path(volume.state_file).touch()

    def stop(self, *volumes):
        for volume in volumes:
            self.run(volume.stop())
            Path(volume.state_file).unlink(missing_ok=True)

    def session(self, volume, content, offset=0):
        """Start a volume, write to it and stop it."""
        self.start(volume)
        write(volume.path, content, offset)
        self.stop(volume)

    def replace(self, volume, content, size=MIB):
        """Import *content* into a volume, which gets *size*."""
        write(self.run(volume.import_data(size)), content)
        self.run(volume.import_data_end(True))

    def content(self, volume, length=16):
        """Return the first bytes of an export of a volume."""
        path = self.run(volume.export())
        try:
            return read(path, length)
        finally:
            self.run(volume.export_end(path))

    def restart(self):
        """Drop all Python state, as if qubesd died; return a new pool."""
        runtime.restart()
        self.pool = self.kind(name=self.name, **self.options)
        return self.pool

    def again(self, volume):
        """Return a new object of the same volume, as made from qubes.xml."""
        config = {
            key: value if isinstance(value, bool) else str(value)
            for key, value in volume.config.items()
        }
        config["source"] = volume.source
        config["pool"] = self.pool.name
        if volume.source is None:
            del config["source"]
        else:
            config["source"] = self.again(volume.source)
        return self.pool.init_volume(self.vm("ignored"), config)

    def datasets(self, kind="all"):
        """Return the names below the container, relative to it."""
        out = sh("zfs", "list", "-Hr", "-t", kind, "-o", "name", self.container)
        start = self.container + "/"
        return [
            line.removeprefix(start)
            for line in out.split("\n")
            if line.startswith(start)
        ]

    def sweep_until(self, gone):
        """Collect garbage until *gone()*; return whether it became true.

        udev may probe a zvol meanwhile; ZFS then does not destroy it.
        """
        for _ in range(20):
            self.run(self.pool.store.collect_garbage())
            if gone():
                return True
            time.sleep(0.25)
        return False


class EncryptedLab(Lab):
    """One encrypted pool; a test must replace the passphrase prompt.

    :ivar asked: whether the pool is added with two prompts and a keyholder, as
        a user adds it; otherwise its datasets are created directly
    """

    kind = ZfsEncryptedPool

    def __init__(self, zpool, asked=False, **options):
        self.asked = asked
        super().__init__(zpool, **options)

    def is_locked(self):
        """Return whether the key is unloaded."""
        return self.run(keys.state(self.container)).locked

    def _place(self, zpool):
        where = {"zpool_name": zpool, "pbkdf2iters": "100000"}
        return f"{zpool}/encryption/{self.name}", where

    def add(self, name, **options):
        if self.asked:
            return super().add(name, **options)
        pool = self.kind(name=name, **options)
        create_encrypted(pool.container, name)
        return pool


def create_encrypted(container, name):
    """Create the encryption root of a pool with PASSPHRASE; load its key."""
    above = container.rpartition("/")[0]
    sh("zfs", "create", "-p", "-o", "canmount=off", above)
    made_from = {
        "encryption": keyholder.AES_256_GCM,
        "keyformat": keyholder.PASSPHRASE,
        "keylocation": "prompt",
        "pbkdf2iters": 100_000,
        "pbkdf2salt": 1,
    }
    properties = {**ROOT_SETTINGS, naming.CLAIM: name, **made_from}
    with known_key() as key:
        lzc.create_root(container, properties, key)


def known_key():
    """Return the key of the encryption roots of create_encrypted()."""
    return keyholder.wrapping_key(bytearray(PASSPHRASE), 1, 100_000)


async def becomes_locked(pool):
    """Return whether the key of a pool is unloaded within some seconds."""
    for _ in range(200):
        if (await keys.state(pool.container)).locked:
            return True
        await asyncio.sleep(0.1)
    return False
