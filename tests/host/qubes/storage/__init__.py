# SPDX-License-Identifier: BSD-2-Clause
"""Pools, and the functions that find their drivers."""

import inspect
import os
from datetime import UTC, datetime

import lxml.etree
import qubes
import qubes.config
import qubes.utils
from qubes.exc import StoragePoolException  # noqa: F401
from qubes.release import IS_R43

STORAGE_ENTRY_POINT = "qubes.storage"
#: where is_running() of a volume is recorded; tests may point it elsewhere
VOLUME_STATE_DIR = "/var/run/qubes/"
VOLUME_STATE_PREFIX = "volume-running-"


def _sanitize_config(config):
    """Return the attributes of an XML element; R4.3 omits False."""
    return {
        key: str(value)
        for key, value in config.items()
        if not (IS_R43 and value is False)
    }


# both modules need the names above, and only those, while being imported
from qubes.storage.manager import Storage  # noqa: E402,F401
from qubes.storage.volume import BlockDevice, Volume  # noqa: E402,F401


class VolumesCollection:
    """The volumes of a pool, by volume id or Volume object."""

    def __init__(self, pool):
        self._pool = pool

    def __getitem__(self, item):
        if isinstance(item, Volume):
            if item.pool != self._pool:
                raise KeyError(item)
            item = item.vid
        try:
            return self._pool.get_volume(item)
        except NotImplementedError:
            pass
        for volume in self:
            if volume.vid == item:
                return volume
        raise KeyError(item)

    def __iter__(self):
        return iter(self._pool.list_volumes())

    def __contains__(self, item):
        try:
            found = self[item]
        except KeyError:
            return False
        return found is not None

    def keys(self):
        """Return the list of volume ids."""
        return [volume.vid for volume in self]

    def values(self):
        """Return the list of Volume objects."""
        return list(self)


class Pool:
    """Base of all drivers; equal to any pool, or text, of its name."""

    private_img_size = qubes.config.defaults["private_img_size"]
    root_img_size = qubes.config.defaults["root_img_size"]

    def __init__(self, *, name, revisions_to_keep=1, ephemeral_volatile=False):
        self.name = name
        self.revisions_to_keep = revisions_to_keep
        if not IS_R43:
            ephemeral_volatile = qubes.utils.parse_bool(ephemeral_volatile)
        self.ephemeral_volatile = ephemeral_volatile
        self._volumes_collection = VolumesCollection(self)

    def __eq__(self, other):
        if isinstance(other, (Pool, str)):
            return self.name == str(other)
        return NotImplemented

    def __hash__(self):
        return hash(self.name)

    def __str__(self):
        return self.name

    def __xml__(self):
        return lxml.etree.Element("pool", **_sanitize_config(self.config))

    def _not_implemented(self, method_name):
        driver = type(self).__name__
        return NotImplementedError(
            f"Pool driver {driver} has {method_name}() not implemented"
        )

    @property
    def config(self):
        """The arguments of __init__ for this pool, and its driver."""
        raise self._not_implemented("config")

    @property
    def volumes(self):
        """VolumesCollection of this pool."""
        return self._volumes_collection

    @property
    def size(self):
        """The size in bytes, or None if unknown."""
        return None

    @property
    def usage(self):
        """The bytes in use, or None if unknown."""
        return None

    @property
    def usage_details(self):
        """Those of data_usage and data_size that are available."""
        numbers = {"data_usage": self.usage, "data_size": self.size}
        return {key: num for key, num in numbers.items() if num is not None}

    async def setup(self):
        """Set up the pool; called once, when the pool is added."""
        raise self._not_implemented("setup")

    async def destroy(self):
        """Undo setup(); nothing calls this."""
        raise self._not_implemented("destroy")

    def init_volume(self, vm, volume_config):
        """Return the Volume object for *volume_config*."""
        raise self._not_implemented("init_volume")

    def list_volumes(self):
        """All volumes of the pool."""
        raise self._not_implemented("list_volumes")

    def get_volume(self, vid):
        """Return the volume *vid*; KeyError without it."""
        raise self._not_implemented("get_volume")

    def included_in(self, app):
        """Return the pool that this pool is in, if it can be determined."""


def pool_drivers():
    """Return the names of all drivers."""
    return qubes.utils.entry_point_names(STORAGE_ENTRY_POINT)


def driver_parameters(name):
    """Return the options of a driver -> whether an option is required."""
    init = qubes.utils.get_entry_point_one(STORAGE_ENTRY_POINT, name).__init__
    return {
        param.name: param.default is param.empty
        for param in inspect.signature(init).parameters.values()
        if param.name not in {"self", "name", "kwargs"}
    }


def isodate(seconds):
    """Return a time stamp as a UTC date without zone, fit for sorting."""
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return moment.replace(tzinfo=None).isoformat()


def search_pool_containing_dir(pools, dir_path):
    """Return the first pool with a dir_path at or above *dir_path*."""
    wanted = os.path.realpath(dir_path)
    for pool in pools:
        if hasattr(pool, "dir_path"):
            base = os.path.realpath(pool.dir_path)
            if os.path.commonpath([base, wanted]) == base:
                return pool
    return None
