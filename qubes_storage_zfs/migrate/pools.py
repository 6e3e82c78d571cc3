# SPDX-License-Identifier: BSD-2-Clause
"""A pool that is to be migrated, as qubes.xml describes it.

Pure: nothing here reads a file or asks ZFS.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..store import messages, naming
from .errors import Refused


class Origin(enum.StrEnum):
    """The driver that created a pool."""

    #: core-admin's driver ``zfs``
    UPSTREAM = "zfs"
    #: a release of this driver from before generations and pointers
    OLDER = "older"


@dataclass(frozen=True)
class ConfiguredVolume:
    """A volume, as qubes.xml has it.

    :ivar qube: the name of its qube
    :ivar klass: the class of its qube
    :ivar attributes: the attributes of its element
    """

    qube: str
    klass: str
    attributes: Mapping[str, str]

    @property
    def name(self) -> str:
        """The volume's name within its qube."""
        return self.attributes.get("name", "")

    @property
    def vid(self) -> str:
        """The volume's identifier in qubesd."""
        return self.attributes.get("vid", "")

    def is_persistent(self, origin: Origin) -> bool:
        """Return whether its content is kept when the qube stops.

        The older driver recorded that no content is kept, although it kept it.
        For that driver, the class of the qube decides.
        """
        if origin is Origin.UPSTREAM:
            return self.attributes.get("save_on_stop") == "True"
        if self.name == "root":
            return self.klass in ("TemplateVM", "StandaloneVM")
        return self.name == "private" and self.klass != "DispVM"

    @property
    def has_revisions(self) -> bool:
        """Whether it has a committed state and revisions."""
        return self.attributes.get("revisions_to_keep") != "-1"


@dataclass(frozen=True)
class MigratingPool:
    """A pool that is migrated: its place before and after.

    :ivar pool: the name of the pool
    :ivar driver: its driver after the migration
    :ivar origin: the driver that created it
    :ivar container: the dataset of its container
    :ivar qubes_root: its qubes root after the migration
    :ivar old: the dataset below which the qubes' datasets were before
    """

    pool: str
    driver: str
    origin: Origin
    container: str
    qubes_root: str
    old: str

    @property
    def zpool(self) -> str:
        """The zpool that the pool is in."""
        return self.container.partition("/")[0]

    @property
    def inside(self) -> str:
        """The old place in the container; empty if it is the container."""
        return self.old[len(self.container) + 1 :]

    @property
    def dropped(self) -> tuple[str, ...]:
        """The attributes of volumes that the migration removes from qubes.xml.

        The older driver wrote wrong values.  Without them, the class of the
        qube decides.
        """
        if self.origin is Origin.OLDER:
            return ("save_on_stop", "snap_on_start")
        return ()


def migrating_pool(
    attributes: Mapping[str, str],
    volumes: Sequence[ConfiguredVolume],
    before: tuple[Origin, str] | None = None,
) -> MigratingPool:
    """Return the place of a pool that qubes.xml describes.

    :param attributes: the attributes of the pool's element
    :param volumes: the volumes of the pool
    :param before: for a pool that is migrated already, one of records.LAYOUTS:
        its origin, and where the qubes' datasets were in the container
    :raises Refused: if the pool cannot be migrated
    """
    name, driver = attributes.get("name", ""), attributes.get("driver", "")
    if driver == "zfs_encrypted":
        above = attributes.get("zpool_name", name)
        container = qubes_root = f"{above}/encryption/{name}"
    elif driver in (Origin.UPSTREAM, "zfs_zvol"):
        container = attributes.get("container", name)
        qubes_root = f"{container}/vm"
    else:
        raise Refused(messages.ADOPT_DRIVER, pool=name, driver=driver)
    try:
        naming.dataset_name(container)
    except naming.BadName as exc:
        raise Refused(str(exc)) from exc
    if before is not None:
        origin, inside = before
        old = f"{container}/{inside}".rstrip("/")
    elif driver == Origin.UPSTREAM:
        old, origin = container, Origin.UPSTREAM
    else:
        deep = [v for v in volumes if v.vid.startswith(f"{container}/vm/")]
        is_flat = driver == "zfs_encrypted" and not deep
        old = container if is_flat else f"{container}/vm"
        origin = Origin.OLDER
    ours = "zfs_zvol" if driver == Origin.UPSTREAM else driver
    return MigratingPool(name, ours, origin, container, qubes_root, old)
