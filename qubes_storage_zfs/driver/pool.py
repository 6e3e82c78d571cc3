# SPDX-License-Identifier: BSD-2-Clause
"""The pools: where volumes are put, and what is true of all of them there.

qubesd builds pools at its start, before its event loop runs, and a second
time for each backup; an exception then ends qubesd.  So nothing here touches
ZFS or raises before setup() or the first use of a volume.
"""

import functools
import logging
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
from ..zfs import commands, importexport, keys, lzc, newzpool, probe
from ..zfs.batch import Batch
from ..zfs.errors import NotReadable, ZfsError
from . import attributes
from .admin import Application, Qube
from .discarded import collect_once
from .errors import prefixed
from .interface import Volume
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")

#: the first version without known ways to lose encrypted data, and whose
#: channel programs tell encryption roots right
OLDEST_OPENZFS = (2, 3, 3)


class ZfsPool(qubes.storage.Pool):  # type: ignore[misc]
    """The common part of the pools of this package.

    ZfsVolume describes what a volume is on disk and what each operation does.
    Options of all pools; qvm-pool sets the first two later, too:

    ===========================  =======  ===================================
    ``revisions_to_keep``        2        old states of each volume; -1: none,
                                          and no snapshots
    ``ephemeral_volatile``       False    volatile volumes have a throw-away key
    ``volblocksize``             16k      block size of new volumes
    ``compression``              (lz4)    as the container has it
    ``dedup``                    (off)    ``on-for-ever`` or ``off``
    ``snap_on_start_forensics``  False    keep clones made at start after stop
    ``tag_qubes``                True     qubes have the tag zfs-pool-<pool>
    ===========================  =======  ===================================

    :ivar container: the dataset that the pool owns, marked with its name
    :ivar qubes_root: the dataset below which the qubes' datasets are
    """

    driver: str
    container: str
    qubes_root: str
    is_encrypted = False
    revisions_to_keep = attributes.RevisionsToKeep()

    def __init__(self, *, name: str, raw_options: Mapping[str, object]) -> None:
        #: as given, to be written back; strings when read from qubes.xml
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
        #: whether clones made at start are kept when their qube stops
        self.forensics: bool = self._options.parsed(
            "snap_on_start_forensics", False
        )
        #: whether qubes that keep something here have a tag that says so
        self.tag_qubes: bool = self._options.parsed("tag_qubes", True)
        #: the qubes that the pool is for, once one has a volume here
        self._app: Application | None = None
        self._volumes: weakref.WeakValueDictionary[str, ZfsVolume] = (
            weakref.WeakValueDictionary()
        )

    def __repr__(self) -> str:
        return f"<{self.name}: {self.driver} on {self.container}>"

    # --- what is where

    @property
    def zpool(self) -> str:
        return self.container.partition("/")[0]

    @property
    def store(self) -> Container:
        return Container.at(self.container, self.qubes_root)

    @property
    def place(self) -> policy.Place:
        guid = self._options.text(naming.ZPOOL_GUID)
        where = self.container, self.qubes_root
        return policy.Place(self.name, *where, self.is_encrypted, guid)

    def zpool_must_be_imported(self) -> None:
        """:raises Refused: if the zpool is not imported"""
        if lzc.module_version() and importexport.guid(self.zpool) is None:
            raise Refused(messages.NO_ZPOOL, dataset=self.zpool)

    def note_zpool(self) -> None:
        """Have qubes.xml say which zpool it is: the next one of that name may
        be on another disk."""
        self._options[naming.ZPOOL_GUID] = importexport.guid(self.zpool)

    async def set_dedup(self) -> None:
        """Give all volumes the option ``dedup``, which they inherit."""
        value: str | None = self._options.parsed("dedup", None)
        if value is not None:
            await commands.set_property(self.qubes_root, "dedup", value)

    async def encryption_root(self) -> str | None:
        """What a clone must share with its origin; None: not encrypted.

        :raises ZfsError: if ZFS cannot be asked
        """
        return (await keys.state(self.qubes_root)).root

    # --- what encrypted pools do more

    async def first_use(self) -> None:
        """Every verb that changes something begins with this."""
        if await self.store.first_use() and not self.store.is_compared:
            await collect_once(self, self._app)

    async def must_be_allowed(self) -> None:
        """Check what is on disk before anything of it is opened or handed out.

        It is checked once after each import of the zpool, and again as long as
        it is not allowed.

        :raises policy.Refused: if something is not
        :raises ZfsError: if ZFS cannot be asked
        """
        await self.store.first_check.check(self.place)

    async def unlock(
        self, qube: str | None = None, app: Application | None = None
    ) -> None:
        """Every verb that a person waits for begins with this."""

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        """:raises Locked: if the volumes cannot be opened"""

    def note_use(self) -> None:
        """A verb has ended after which nothing may need the pool."""

    @property
    def config(self) -> dict[str, object]:
        """What qubes.xml says of the pool: the options that were given, and
        those that can be changed, as they are now."""
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
            # as text: core-admin 4.3 writes no attribute that is False
            "ephemeral_volatile": str(self.ephemeral_volatile),
        }

    def check_container(self, state: VolumeState) -> None:
        """:raises StoragePoolException: unless *state* is of our container"""
        with prefixed(f"Pool {self.name} is not available"):
            if not state.container:
                raise policy.NotThere(
                    messages.CONTAINER_MISSING, dataset=self.container
                )
            if state.owner is None:
                raise policy.unmarked(self.name, self.container, state.bare)
            if state.owner != self.name:
                raise policy.claimed(self.container, state.owner)

    # --- volumes

    def init_volume(
        self, vm: Qube, volume_config: dict[str, object]
    ) -> ZfsVolume:
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
        config["pool"] = self
        attributes.parse(config, self.revisions_to_keep)
        volume = ZfsVolume(**cast(dict[str, Any], config))
        self._volumes[volume.vid] = volume
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

    def unlist(self, vid: str) -> None:
        """Forget the volume *vid*, which was removed."""
        self._volumes.pop(vid, None)

    @functools.cached_property
    def _listing(self) -> Listing:
        return Listing(self.qubes_root)

    def list_volumes(self) -> list[ZfsVolume]:
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
        """:raises KeyError: if there is no such volume"""
        if vid in self._volumes:
            return self._volumes[vid]
        try:
            pointers = self._listing.now()
        except ZfsError:
            # qubesd asks for sources while it starts; a KeyError would end it
            return self._volume_object(vid, self._listing.last.get(vid))
        if vid not in pointers:
            raise KeyError(vid)
        return self._volume_object(vid, pointers[vid])

    def _volume_object(self, vid: str, pointer: Pointer | None) -> ZfsVolume:
        """The volume object of *vid*; a bare one if no qube has it."""
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
        return Space(self.qubes_root)

    def available(self) -> int | None:
        """Bytes that can still be written; None if unknown."""
        return self.space.now().get("available")

    @property
    def size(self) -> int | None:
        space = self.space.now()
        return space["used"] + space["available"] if space else None

    @property
    def usage(self) -> int | None:
        return self.space.now().get("used")

    @property
    def usage_details(self) -> dict[str, int]:
        """Bytes, by name; see Space.details()."""
        return self.space.details()

    def included_in(self, app: Application) -> qubes.storage.Pool | None:
        """The pool whose container is nearest above ours."""
        nearest, above = -1, None
        for pool in app.pools.values():
            container = getattr(pool, "container", None)
            if pool is self or not isinstance(container, str):
                continue
            inside = f"{self.container}/".startswith(f"{container}/")
            if inside and len(container) > nearest:
                nearest, above = len(container), pool
        return above

    # --- coming and going

    async def destroy(self) -> None:
        """Give the container back; what is in it stays."""
        with prefixed(f"Cannot give back {self.container}"):
            await claim.claim(self.container, self.name, release=True)


class ZfsZvolPool(ZfsPool):
    """Driver ``zfs_zvol``: volumes below ``C/vm``.

    The container ``C`` is the dataset of ``container``, or a new zpool with the
    name of the pool on the empty devices of ``block_devices``.  Exactly one of
    these options is needed; neither has a default.
    """

    driver = "zfs_zvol"

    def __init__(
        self,
        *,
        name: str,
        container: str | None = None,
        block_devices: str | None = None,
        revisions_to_keep: object = DEFAULT_REVISIONS,
        ephemeral_volatile: object = False,
        volblocksize: str | None = None,
        compression: str | None = None,
        dedup: str | None = None,
        snap_on_start_forensics: object = None,
        tag_qubes: object = None,
        **kwargs: object,
    ) -> None:
        super().__init__(
            name=name,
            raw_options={
                **kwargs,
                "container": container,
                "block_devices": block_devices,
                "revisions_to_keep": revisions_to_keep,
                "ephemeral_volatile": ephemeral_volatile,
                "volblocksize": volblocksize,
                "compression": compression,
                "dedup": dedup,
                "snap_on_start_forensics": snap_on_start_forensics,
                "tag_qubes": tag_qubes,
            },
        )
        self.container = name if container is None else container
        self.qubes_root = f"{self.container}/vm"

    async def setup(self) -> "ZfsZvolPool":
        """Make the pool, or adopt its container; nothing half-made stays.

        :raises StoragePoolException: saying what is wrong with which option
        """
        with prefixed(f"Cannot add the pool {self.name}"):
            container = self._options["container"]
            block_devices = self._options["block_devices"]
            if (container is None) == (block_devices is None):
                raise Refused(
                    "give either container=<dataset> (in a zpool that exists)"
                    " or block_devices=<devices> (to make a zpool of)"
                )
            options.check(self._options)
            if container is not None:
                naming.dataset_name(self.container)
            else:
                naming.zpool_name(self.name)
                devices = _parse_devices(str(block_devices))
            self._check_version()
            if container is not None:
                self.zpool_must_be_imported()
                await claim.adopt(
                    self.name,
                    self.container,
                    self.qubes_root,
                    self._options.text("compression"),
                )
            else:
                await self._setup_zpool(devices)
            await self.set_dedup()
        self.note_zpool()
        return self

    def _check_version(self) -> None:
        numbers = lzc.version_numbers()
        if numbers is not None and numbers < OLDEST_OPENZFS:
            LOG.warning(
                "pool %s: OpenZFS %s is older than 2.3.3, the oldest version"
                " this driver is tested with",
                self.name,
                lzc.module_version(),
            )

    async def _setup_zpool(self, devices: list[str]) -> None:
        if commands.zpool_imported(self.name):
            raise Refused(
                f"there is a zpool {self.name} already; to put qubes on it,"
                f" add the pool with container={self.name}",
            )
        async with probe.checked(devices) as disks:
            try:
                await self._create_zpool(disks)
            except BaseException:
                await self._clear_devices([disk.node for disk in disks])
                raise

    async def _create_zpool(self, disks: list[probe.Device]) -> None:
        compression = self._options.text("compression") or "lz4"
        properties = {**policy.ZPOOL_ROOT_SETTINGS, naming.OWNER: self.name}
        await newzpool.create(self.name, disks, compression, properties)
        try:
            await lzc.create_filesystem(self.qubes_root, policy.ROOT_SETTINGS)
        except BaseException:
            await commands.destroy_zpool(self.name)
            raise

    async def _clear_devices(self, devices: list[str]) -> None:
        """The devices were blank before setup() and are to be so again."""
        try:
            await probe.make_blank_again(devices)
        except ZfsError as exc:
            LOG.error("pool %s: %s", self.name, exc)


def _parse_devices(text: str) -> list[str]:
    """Return the devices that the option ``block_devices`` names.

    :raises Refused: if it names none
    """
    try:
        return probe.split_devices(text)
    except ValueError as exc:
        raise Refused(str(exc)) from exc
