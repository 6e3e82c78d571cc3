# SPDX-License-Identifier: BSD-2-Clause
"""Placeholders for pools whose driver cannot be imported.

qubesd does not start if a pool that a qube uses is missing, and removes entries
that it cannot load from qubes.xml.  So a placeholder keeps the entries of a
pool and of its volumes in qubes.xml, and refuses all operations.  This module
must work without any other module of the package.
"""

import inspect
import logging
from typing import Any, NoReturn

import qubes.storage

LOG = logging.getLogger("qubes.storage.zfs")

MESSAGE = (
    "the driver {driver} cannot be loaded in dom0 ({reason}); reinstall the"
    " package qubes-storage-zfs, then restart qubesd"
)

_BASE = frozenset(
    inspect.signature(qubes.storage.Volume.__init__).parameters
) - {"self", "kwargs"}


def pool_class(driver_name: str, error: Exception) -> type:
    """Return the placeholder class for a driver that cannot be imported.

    :param driver_name: name of the driver in qubes.xml
    :param error: the exception that the import raised
    """
    LOG.error("cannot load the driver %s", driver_name, exc_info=error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())

    class Placeholder(PlaceholderPool):
        driver = driver_name
        message = MESSAGE.format(driver=driver_name, reason=reason).replace(
            "%", "%%"
        )

    return Placeholder


class PlaceholderPool(qubes.storage.Pool):  # type: ignore[misc]
    """A pool that keeps its entry in qubes.xml, and refuses all operations.

    qubesd creates it from a subclass that pool_class() returns, and it lasts
    until qubesd exits.

    :cvar driver: name of the driver in qubes.xml
    :cvar message: the reason and the remedy
    """

    driver: str
    message: str

    def __init__(self, *, name: str, **kwargs: object) -> None:
        """Take all options as they are in qubes.xml."""
        super().__init__(name=name)
        self._options = kwargs

    def __repr__(self) -> str:
        """Return the name of the pool and of the driver."""
        return f"<{self.name}: {self.driver}, broken>"

    @property
    def config(self) -> dict[str, object]:
        """The entry in qubes.xml, unchanged."""
        return {**self._options, "name": self.name, "driver": self.driver}

    def init_volume(
        self, vm: Any, volume_config: dict[str, object]
    ) -> "PlaceholderVolume":
        """Return a placeholder for a volume of the qube *vm*."""
        config = dict(volume_config)
        config.setdefault("vid", f"{vm.name}/{config['name']}")
        config["pool"] = self
        return PlaceholderVolume(**config)

    def get_volume(self, vid: str) -> "PlaceholderVolume":
        """Return a placeholder for any vid.

        qubesd looks up the sources of volumes when it starts, and a KeyError
        would stop it.
        """
        return PlaceholderVolume(name=vid, vid=vid, pool=self)

    def list_volumes(self) -> list["PlaceholderVolume"]:
        """Return no volumes, because none can be read."""
        return []

    async def setup(self) -> None:
        """Refuse to add the pool.

        :raises StoragePoolException: always
        """
        raise qubes.storage.StoragePoolException(self.message)

    async def destroy(self) -> None:
        """Do nothing; the container keeps its mark."""


class PlaceholderVolume(qubes.storage.Volume):  # type: ignore[misc]
    """A volume that keeps its entry in qubes.xml, and refuses all operations.

    Its pool creates it, and qubesd keeps it until it exits.
    """

    def __init__(self, **config: object) -> None:
        """Take all attributes as they are in qubes.xml."""
        self._attributes = {
            key: value
            for key, value in config.items()
            if key not in _BASE or key in ("size", "revisions_to_keep")
        }
        base = {
            key: config[key] for key in config if key not in self._attributes
        }
        super().__init__(**base)

    @property
    def size(self) -> int:
        """The size in bytes, from qubes.xml; 0 if it is not a number there."""
        size = str(self._attributes.get("size", ""))
        return int(size) if size.isdecimal() else 0

    @property
    def config(self) -> dict[str, object]:
        """The entry in qubes.xml, unchanged."""
        return {**super().config, **self._attributes}

    @property
    def revisions(self) -> dict[str, str]:
        """No revisions, because none can be read."""
        return {}

    def is_dirty(self) -> bool:
        """Return False, because the disk cannot be read."""
        return False

    def is_outdated(self) -> bool:
        """Return False, because the disk cannot be read."""
        return False

    async def stop(self) -> "PlaceholderVolume":
        """Do nothing; the content is not committed, and is not lost."""
        return self

    async def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse an operation.

        :raises StoragePoolException: always
        """
        raise qubes.storage.StoragePoolException(self.pool.message)

    verify = start = create = remove = revert = resize = _refuse
    export = export_end = import_data = import_data_end = _refuse
    import_volume = _refuse
