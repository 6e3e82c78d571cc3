# SPDX-License-Identifier: BSD-2-Clause
"""What stands in for a pool whose driver cannot be imported.

qubesd does not start without a pool that a qube uses, and drops from qubes.xml
what it cannot load.  So a package that is broken has pools all the same: they
keep what qubes.xml says of them and of their volumes, and refuse the rest.
Nothing here may need another module of this package.
"""

import inspect
import logging
from typing import Any, NoReturn

import qubes.storage

LOG = logging.getLogger("qubes.storage.zfs")

MESSAGE = (
    "the driver {driver} in dom0 is broken ({reason}); reinstall the package"
    " qubes-storage-zfs, then restart qubesd"
)

_BASE = frozenset(
    inspect.signature(qubes.storage.Volume.__init__).parameters
) - {"self", "kwargs"}


def pool_class(driver_name: str, error: Exception) -> type:
    """The class for pools of *driver_name*, which failed with *error*."""
    LOG.error("driver %s is broken", driver_name, exc_info=error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())

    class Placeholder(PlaceholderPool):
        driver = driver_name
        message = MESSAGE.format(driver=driver_name, reason=reason).replace(
            "%", "%%"
        )

    return Placeholder


class PlaceholderPool(qubes.storage.Pool):  # type: ignore[misc]
    """Keeps its lines of qubes.xml, and refuses everything.

    :ivar message: the reason and the remedy
    """

    driver: str
    message: str

    def __init__(self, *, name: str, **kwargs: object) -> None:
        super().__init__(name=name)
        self._options = kwargs

    def __repr__(self) -> str:
        return f"<{self.name}: {self.driver}, broken>"

    @property
    def config(self) -> dict[str, object]:
        return {**self._options, "name": self.name, "driver": self.driver}

    def init_volume(
        self, vm: Any, volume_config: dict[str, object]
    ) -> "PlaceholderVolume":
        config = dict(volume_config)
        config.setdefault("vid", f"{vm.name}/{config['name']}")
        config["pool"] = self
        return PlaceholderVolume(**config)

    def get_volume(self, vid: str) -> "PlaceholderVolume":
        """qubesd asks for sources while it starts; a KeyError would end it."""
        return PlaceholderVolume(name=vid, vid=vid, pool=self)

    def list_volumes(self) -> list["PlaceholderVolume"]:
        return []

    async def setup(self) -> None:
        raise qubes.storage.StoragePoolException(self.message)

    async def destroy(self) -> None:
        """There is nothing to give back."""


class PlaceholderVolume(qubes.storage.Volume):  # type: ignore[misc]
    """Keeps its line of qubes.xml, and cannot be started."""

    def __init__(self, **config: object) -> None:
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
        size = str(self._attributes.get("size", ""))
        return int(size) if size.isdecimal() else 0

    @property
    def config(self) -> dict[str, object]:
        return {**super().config, **self._attributes}

    @property
    def revisions(self) -> dict[str, str]:
        return {}

    def is_dirty(self) -> bool:
        return False

    def is_outdated(self) -> bool:
        return False

    async def stop(self) -> "PlaceholderVolume":
        """As for a volume that never was."""
        return self

    async def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise qubes.storage.StoragePoolException(self.pool.message)

    verify = start = create = remove = revert = resize = _refuse
    export = export_end = import_data = import_data_end = _refuse
    import_volume = _refuse
