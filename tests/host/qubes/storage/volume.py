# SPDX-License-Identifier: BSD-2-Clause
"""Volume, the base of the volumes of all drivers."""

import asyncio
import functools
import os
from typing import Any

import lxml.etree
import qubes.exc
import qubes.utils
from qubes.exc import StoragePoolException

_am_root = os.getuid() == 0
_MAPPER = "/dev/mapper/"
_ZEROED = 64 << 10


class BlockDevice:
    """A disk, as the hypervisor gets it."""

    def __init__(
        self, path, name, script=None, rw=True, domain=None, devtype="disk"
    ):
        assert path and name, "a device needs a path and a name"
        assert script is None, "block scripts are gone"
        self.path = path
        self.name = name
        self.rw = rw
        self.domain = domain
        self.devtype = devtype


class Volume:
    """One disk of a qube; equal if pool and volume id are equal."""

    devtype = "disk"
    domain = None
    path: str | None = None
    usage = 0
    pool: Any  # a qubes.storage.Pool

    def __init__(
        self,
        name,
        pool,
        vid,
        *,
        revisions_to_keep=0,
        rw=False,
        save_on_stop=False,
        size=0,
        snap_on_start=False,
        source=None,
        ephemeral=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        assert isinstance(pool, qubes.storage.Pool)
        if source is not None:
            assert isinstance(source, Volume)
            assert source.pool == pool
            if not snap_on_start:
                raise StoragePoolException(f"{name!r}: source, no snapshot")
        elif snap_on_start:
            raise StoragePoolException(f"{name!r}: snapshot without source")
        self.name = str(name)
        self.pool = pool
        self.vid = vid
        self.revisions_to_keep = int(revisions_to_keep)
        self.rw = rw
        self.save_on_stop = save_on_stop
        self.snap_on_start = snap_on_start
        self.source = source
        self._size = int(size)
        self._ephemeral = ephemeral
        self._lock = asyncio.Lock()

    def __eq__(self, other):
        if not isinstance(other, Volume):
            return NotImplemented
        return (self.pool, self.vid) == (other.pool, other.vid)

    def __hash__(self):
        return hash(f"{self.pool}:{self.vid}")

    def __repr__(self):
        return repr(f"{self.pool}:{self.vid}")

    def __str__(self):
        return str(self.vid)

    def __xml__(self):

        attributes = qubes.storage._sanitize_config(self.config)
        return lxml.etree.Element("volume", **attributes)

    @staticmethod
    def locked(method):
        """Run only one decorated coroutine of a volume at a time."""

        @functools.wraps(method)
        async def wrapper(self, *args, **kwargs):
            async with self._lock:
                return await method(self, *args, **kwargs)

        return wrapper

    def _not_implemented(self, method_name):
        kind = type(self).__name__
        return NotImplementedError(
            f"Volume {kind} has {method_name}() not implemented"
        )

    @property
    def config(self):
        """The attributes of this volume in the XML file."""
        result = {"name": self.name, "pool": str(self.pool), "vid": self.vid}
        for key in "revisions_to_keep", "rw", "save_on_stop", "snap_on_start":
            result[key] = getattr(self, key)
        if self._ephemeral is not None:
            result["ephemeral"] = self.ephemeral
        if self.size:
            result["size"] = self.size
        if self.source:
            result["source"] = str(self.source)
        return result

    @property
    def size(self):
        """The size that the qube sees, in bytes."""
        return self._size

    @property
    def revisions(self):
        """A dict: revision id -> creation date."""
        raise NotImplementedError(f"{type(self)} has no revisions")

    @property
    def _is_volatile(self):
        kept = self.snap_on_start or self.save_on_stop
        return not kept and self.domain is None and bool(self.rw)

    @property
    def ephemeral(self):
        """Whether a key of one session encrypts it; the pool has the default."""
        if self._ephemeral is not None:
            return self._ephemeral
        return self._is_volatile and self.pool.ephemeral_volatile

    @ephemeral.setter
    def ephemeral(self, value):
        if value and not self._is_volatile:
            raise qubes.exc.QubesValueError(
                "only a writable volume that keeps nothing can be ephemeral"
            )
        self._ephemeral = bool(value)

    @property
    def snapshots_disabled(self):
        """Whether a persistent volume is used in place, unprotected."""
        persistent = self.save_on_stop and not self.snap_on_start
        return persistent and self.revisions_to_keep == -1

    @property
    def state_file(self):
        """The file that exists while the volume is started."""
        ident = f"{self.pool.name}:{self.vid}"
        ident = ident.replace("-", "--").replace("/", "-")
        return os.path.join(
            qubes.storage.VOLUME_STATE_DIR,
            qubes.storage.VOLUME_STATE_PREFIX + ident,
        )

    def is_running(self):
        """Whether the volume was started and not stopped since."""
        return os.path.exists(self.state_file)

    def block_device(self):
        """The disk for the qube."""
        return BlockDevice(
            path=self.path,
            name=self.name,
            rw=self.rw,
            domain=self.domain,
            devtype=self.devtype,
        )

    def encrypted_volume_path(self, qube_name, device_name):
        """Path of the mapped device, different for every qube and disk."""
        escaped = qube_name.replace("_", "_u").replace("-", "_d")
        return f"{_MAPPER}vm-volatile-{escaped}-crypt@{device_name}"

    def make_encrypted_device(self, device, qube_name):
        """The mapped device in place of *device*."""
        assert device.domain is None and device.devtype == "disk"
        assert device.rw, "an encrypted disk has to be writable"
        path = self.encrypted_volume_path(qube_name, device.name)
        return BlockDevice(path=path, name=device.name, rw=device.rw)

    @staticmethod
    def _mapped_name(path):
        assert path.startswith(_MAPPER), f"not a mapped device: {path!r}"
        name = path[len(_MAPPER) :]
        assert "/" not in name
        return name

    async def start_encrypted(self, name):
        """Close a left-over mapping, start, map with a random key, wipe."""
        mapped = self._mapped_name(name)
        if os.path.exists(name):
            await qubes.utils.cryptsetup("--", "close", mapped)
        await qubes.utils.coro_maybe(self.start())
        await qubes.utils.cryptsetup(
            "--key-file=/dev/urandom",
            "--cipher=aes-xts-plain64",
            "--type=plain",
            "--",
            "open",
            self.block_device().path,
            mapped,
        )
        if _am_root:
            with open(name, "wb+") as device:
                device.write(bytes(_ZEROED))
        else:
            await qubes.utils.run_program(
                *("dd", "if=/dev/zero", f"of={name}"),
                *("count=1", f"bs={_ZEROED}"),
                sudo=True,
            )

    async def stop_encrypted(self, name):
        """Close the mapping, if any, and stop: the way of every stop."""
        assert name.startswith(_MAPPER), f"not a mapped device: {name!r}"
        if os.path.exists(name):
            await qubes.utils.cryptsetup("--", "close", name)
        await qubes.utils.coro_maybe(self.stop())

    async def create(self):
        """Create the volume on disk."""
        raise self._not_implemented("create")

    async def remove(self):
        """Remove the volume from disk."""
        raise self._not_implemented("remove")

    async def start(self):
        """Prepare the volume for the qube."""
        raise self._not_implemented("start")

    async def stop(self):
        """Commit or discard what the qube wrote."""
        raise self._not_implemented("stop")

    async def verify(self):
        """Return True, or raise an exception with the reason."""
        raise self._not_implemented("verify")

    async def export(self):
        """Return a path with the committed data."""
        raise self._not_implemented("export")

    async def export_end(self, path):
        """Release the path of export()."""

    async def import_data(self, size):
        """Return a path for *size* bytes of new data."""
        raise self._not_implemented("import_data")

    async def import_data_end(self, success):
        """Commit or discard what was written."""

    async def import_volume(self, src_volume):
        """Import the data of another volume; return the new volume."""
        raise self._not_implemented("import_volume")

    async def resize(self, size):
        """Grow to *size* bytes."""
        raise self._not_implemented("resize")

    async def revert(self, revision=None):
        """Revert to *revision*."""
        raise self._not_implemented("revert")

    def is_dirty(self):
        """Whether there is data that no stop() has handled."""
        raise self._not_implemented("is_dirty")

    def is_outdated(self):
        """Whether the source has changed since the start."""
        raise self._not_implemented("is_outdated")
