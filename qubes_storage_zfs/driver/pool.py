# SPDX-License-Identifier: BSD-2-Clause
"""The common part of both pool drivers.

qubesd creates its pool objects when it starts, before its event loop runs, and
a second set of them for each backup.  An exception would stop qubesd.  So no
code here uses ZFS or raises before setup() or the first use of a volume.
"""

import functools
import weakref
from collections.abc import Mapping
from typing import Any, cast

import qubes.storage

from ..store import claim, messages, naming, options, policy
from ..store.container import Container
from ..store.listing import Listing
from ..store.messages import Refused
from ..store.options import DEFAULT_BLOCKSIZE, DEFAULT_REVISIONS
from ..store.pointer import Pointer
from ..store.space import Space
from ..store.state import VolumeState
from ..zfs import commands, importexport, keys, lzc
from ..zfs.batch import Batch
from ..zfs.errors import NotReadable, ZfsError
from . import attributes
from .admin import Application, Qube
from .discarded import collect_once
from .errors import prefixed
from .interface import Volume
from .volume import ZfsVolume

#: the first version without known defects that lose encrypted data, and the
#: first in which channel programs report encryption roots correctly
OLDEST_OPENZFS = (2, 3, 3)


class ZfsPool(qubes.storage.Pool):  # type: ignore[misc]
    """The common part of both pool drivers.

    qubesd creates a pool object for each entry in qubes.xml, and another one
    when it loads the qubes a second time for a backup.  The objects last as
    long as those qubes.  Only the thread of the event loop uses them.

    ZfsZvolPool and ZfsEncryptedPool describe the datasets and the options.
    ZfsVolume describes a volume on disk, and each operation.

    :cvar driver: name of the driver in qubes.xml
    :cvar is_encrypted: whether the pool has an encryption key of its own
    :ivar container: the dataset that the pool owns, marked with its name
    :ivar qubes_root: the dataset below which the datasets of qubes are
    :ivar blocksize: block size of new volumes, in bytes
    :ivar forensics: whether a clone that start() made is kept after stop()
    :ivar tag_qubes: whether qubes with saved volumes in the pool get a tag
    """

    driver: str
    container: str
    qubes_root: str
    is_encrypted = False
    revisions_to_keep = attributes.RevisionsToKeep()

    def __init__(self, *, name: str, raw_options: Mapping[str, object]) -> None:
        """Parse the options; a bad one has its default until setup().

        :param name: name of the pool
        :param raw_options: name -> value, or None; texts if from qubes.xml
        """
        #: unchanged, because they are written back to qubes.xml
        self._options = options.Values(raw_options)
        super().__init__(
            name=name,
            revisions_to_keep=self._options.parsed(
                "revisions_to_keep", DEFAULT_REVISIONS
            ),
            ephemeral_volatile=self._options.parsed(
                "ephemeral_volatile", False
            ),
        )
        self.blocksize: int = self._options.parsed(
            "volblocksize", DEFAULT_BLOCKSIZE
        )
        self.forensics: bool = self._options.parsed(
            "snap_on_start_forensics", False
        )
        self.tag_qubes: bool = self._options.parsed("tag_qubes", True)
        #: the application object of its qubes; None before the first volume
        self._app: Application | None = None
        self._volumes: weakref.WeakValueDictionary[str, ZfsVolume] = (
            weakref.WeakValueDictionary()
        )

    def __repr__(self) -> str:
        """Return the pool, its driver and its container."""
        return f"<{self.name}: {self.driver} on {self.container}>"

    # --- names on disk

    @property
    def zpool(self) -> str:
        """The name of the zpool that the container is in."""
        return self.container.partition("/")[0]

    @property
    def store(self) -> Container:
        """The state of the container in this process."""
        return Container.at(self.container, self.qubes_root)

    @property
    def place(self) -> policy.Place:
        """The names and the zpool that the check of properties needs."""
        guid = self._options.text(naming.ZPOOL_GUID)
        where = self.container, self.qubes_root
        return policy.Place(self.name, *where, self.is_encrypted, guid)

    def zpool_must_be_imported(self) -> None:
        """Check that the zpool is imported, if the ZFS module is loaded.

        :raises Refused: if it is not imported
        """
        if lzc.module_version() and importexport.guid(self.zpool) is None:
            raise Refused(messages.NO_ZPOOL, dataset=self.zpool)

    def note_zpool(self) -> None:
        """Record the GUID of the zpool in qubes.xml.

        Another zpool with the same name can be on another disk.
        """
        self._options[naming.ZPOOL_GUID] = importexport.guid(self.zpool)

    async def set_dedup(self) -> None:
        """Set the option ``dedup`` on the qubes root; volumes inherit it."""
        value: str | None = self._options.parsed("dedup", None)
        if value is not None:
            await commands.set_property(self.qubes_root, "dedup", value)

    async def encryption_root(self) -> str | None:
        """Return the encryption root of the volumes; None: not encrypted.

        A clone has the same encryption root as its origin.

        :raises ZfsError: if ZFS cannot be asked
        """
        return (await keys.state(self.qubes_root)).root

    # --- steps of each operation; encrypted pools extend them

    async def first_use(self) -> None:
        """Collect garbage of earlier processes, once in this process.

        Each operation that changes the disk calls this first.  It also destroys
        disposable volumes that no qube has.
        """
        if await self.store.first_use() and not self.store.is_compared:
            await collect_once(self, self._app)

    async def must_be_allowed(self) -> None:
        """Check the properties of all datasets in the container.

        An operation calls this before it opens a volume or returns its path.
        The check runs once after each import of the zpool.  It runs again as
        long as it fails.

        :raises Refused: if a property has a value that is not allowed
        :raises ZfsError: if ZFS cannot be asked
        """
        await self.store.first_check.check(self.place)

    async def unlock(
        self, qube: str | None = None, app: Application | None = None
    ) -> None:
        """Load the key; a pool without a key does nothing.

        :param qube: name of the qube that needs the pool
        :param app: the application object of that qube
        """

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        """Check that the key is loaded; a pool without a key does nothing.

        :param batch: the batch of the operation
        :raises Locked: if the key is not loaded
        """

    def note_use(self) -> None:
        """Note the end of an operation, from which the key timer counts."""

    @property
    def config(self) -> dict[str, object]:
        """The entry of the pool in qubes.xml.

        It has the options with which the pool was added, and the present values
        of the two that can be changed later.
        """
        current = {
            key: value
            for key, value in self._options.items()
            if value is not None
        }
        return {
            **current,
            "name": self.name,
            "driver": self.driver,
            "revisions_to_keep": self.revisions_to_keep,
            # a text: core-admin 4.3 does not write an attribute that is False
            "ephemeral_volatile": str(self.ephemeral_volatile),
        }

    def check_container(self, state: VolumeState) -> None:
        """Check that *state* was read from a container of this pool.

        :raises StoragePoolException: if the container is missing, or another
            pool owns it
        """
        with prefixed(f"Cannot use the pool {self.name}"):
            if not state.container:
                raise policy.NotThere(
                    messages.CONTAINER_MISSING, dataset=self.container
                )
            if state.claimed_by is None:
                raise policy.unmarked(self.name, self.container, state.bare)
            if state.claimed_by != self.name:
                raise policy.claimed(self.container, state.claimed_by)

    # --- volumes

    def init_volume(
        self, vm: Qube, volume_config: dict[str, object]
    ) -> ZfsVolume:
        """Return a new volume object for a qube; do not touch the disk.

        If there is an object for the same vid, the new one replaces it.

        :param vm: the qube
        :param volume_config: the attributes of the volume, as in qubes.xml
        """
        config = dict(volume_config)
        vid = str(config.setdefault("vid", f"{vm.name}/{config['name']}"))
        config.setdefault("revisions_to_keep", self.revisions_to_keep)
        previous = self._volumes.get(vid)
        volume = self._make_volume(config)
        if previous is not None:
            volume.replaces, previous.replaces = previous, None
        volume.qube, volume.app = vm.name, vm.app
        self._app = vm.app
        return volume

    def _make_volume(self, config: dict[str, object]) -> ZfsVolume:
        """Create a volume object, and record it under its vid."""
        config["pool"] = self
        attributes.parse(config, self.revisions_to_keep)
        volume = ZfsVolume(**cast(dict[str, Any], config))
        self.enlist(volume)
        return volume

    def clones_of(self, vid: str) -> list[Volume]:
        """Return the volumes that are clones of the volume *vid*."""
        return [
            volume
            for volume in self._volumes.values()
            if volume.source is not None and volume.source.vid == vid
        ]

    async def wait_until_idle(self, vid: str) -> None:
        """Wait until the volume *vid* is not being prepared."""
        if vid in self._volumes:
            await self._volumes[vid].preparation.wait_until_idle()

    def enlist(self, volume: Volume) -> None:
        """List the object of a volume that a qube uses.

        It may have been removed before: if another volume of the qube cannot be
        removed, qubesd keeps the qube, and starts it with the same objects.
        """
        self._volumes[volume.vid] = cast(ZfsVolume, volume)

    def unlist(self, vid: str) -> None:
        """Drop the object of the volume *vid*, which was removed."""
        self._volumes.pop(vid, None)

    @functools.cached_property
    def _listing(self) -> Listing:
        return Listing(self.qubes_root)

    def list_volumes(self) -> list[ZfsVolume]:
        """Return the volumes on disk, by vid; the last list if ZFS is slow.

        :return: no volumes if the disk cannot be read
        """
        try:
            pointers = self._listing.now()
        except NotReadable:
            pointers = self._listing.last
        except ZfsError:
            return []
        return [
            self._volume_object(vid, value)
            for vid, value in sorted(pointers.items())
        ]

    def get_volume(self, vid: str) -> ZfsVolume:
        """Return the volume *vid*.

        :raises KeyError: if ZFS reports no such volume
        """
        if vid in self._volumes:
            return self._volumes[vid]
        try:
            pointers = self._listing.now()
        except ZfsError:
            # qubesd looks up sources when it starts; a KeyError would stop it
            return self._volume_object(vid, self._listing.last.get(vid))
        if vid not in pointers:
            raise KeyError(vid)
        return self._volume_object(vid, pointers[vid])

    def _volume_object(self, vid: str, pointer: Pointer | None) -> ZfsVolume:
        """Return the object of the volume *vid*; create one if no qube has it.

        :param pointer: its pointer on disk; None: unknown
        """
        if vid in self._volumes:
            return self._volumes[vid]
        return self._make_volume(
            {
                "name": vid.rpartition("/")[2],
                "vid": vid,
                "rw": True,
                "save_on_stop": pointer is None or not pointer.is_disposable,
            }
        )

    # --- space

    @functools.cached_property
    def space(self) -> Space:
        """The used and available space."""
        return Space(self.qubes_root)

    def available(self) -> int | None:
        """Return the available space in bytes; None if unknown."""
        return self.space.now().get("available")

    @property
    def size(self) -> int | None:
        """The used and available space in bytes; None if unknown."""
        space = self.space.now()
        return space["used"] + space["available"] if space else None

    @property
    def usage(self) -> int | None:
        """The used space in bytes; None if unknown."""
        return self.space.now().get("used")

    @property
    def usage_details(self) -> dict[str, int]:
        """Numbers of bytes by name; see Space.details()."""
        return self.space.details()

    def included_in(self, app: Application) -> qubes.storage.Pool | None:
        """Return the pool whose container contains this container.

        :return: the innermost of several; None if there is none
        """
        nearest, above = -1, None
        for pool in app.pools.values():
            container = getattr(pool, "container", None)
            if pool is self or not isinstance(container, str):
                continue
            inside = f"{self.container}/".startswith(f"{container}/")
            if inside and len(container) > nearest:
                nearest, above = len(container), pool
        return above

    # --- removal

    async def destroy(self) -> None:
        """Release the container, when the pool is removed; keep all data.

        :raises StoragePoolException: if ZFS refuses
        """
        with prefixed(f"Cannot release {self.container}"):
            await claim.claim(self.container, self.name, release=True)
