# SPDX-License-Identifier: BSD-2-Clause
"""The driver ``zfs_zvol``: pools in a dataset, or in a new zpool."""

import logging

from ..store import claim, naming, options, policy
from ..store.messages import Refused
from ..store.options import DEFAULT_REVISIONS
from ..zfs import commands, lzc, newzpool, probe
from ..zfs.errors import ZfsError
from .errors import prefixed
from .pool import OLDEST_OPENZFS, ZfsPool

LOG = logging.getLogger("qubes.storage.zfs")


class ZfsZvolPool(ZfsPool):
    """The driver ``zfs_zvol``: a pool in a dataset, or in a new zpool.

    Each volume is a set of zvols below the container ``C``:

    ============================  =============================================
    ``C``                         the container: the dataset of ``container``,
                                  or a new zpool with the name of the pool
    ``C/vm``                      the qubes root
    ``C/vm/<qube>``               a filesystem that is never mounted; its
                                  properties name the current generations
    ``C/vm/<qube>/<volume>``      generation 0 of a volume
    ``C/vm/<qube>/<volume>.<n>``  generation n, from 1 on
    ``...@r<k>``                  the committed state (highest k), or a revision
    ``...@s1``                    the baseline snapshot of a disposable volume
    ============================  =============================================

    The kind of a volume decides about its content; ZfsVolume has all
    operations:

    =============  =============  =====================  ======================
    snap_on_start  save_on_stop   start()                stop()
    =============  =============  =====================  ======================
    no             yes (private)  uses the content       commits the content
    no             no (volatile)  starts empty           discards the content
    yes (root of   no             starts from a clone    discards the content
    an app qube)                  of the source
    yes            yes            refused                refused
    =============  =============  =====================  ======================

    Options of ``qvm-pool add`` (default in brackets).  Exactly one of the first
    two is needed.  ``qvm-pool set`` can change ``revisions_to_keep`` and
    ``ephemeral_volatile`` later.

    ``container``
        a dataset in an imported zpool; it is created if it is missing
    ``block_devices``
        empty block devices, separated by commas, for a new zpool
    ``revisions_to_keep`` (2)
        number of revisions of each volume besides the committed state; -1: no
        snapshots, and clones and exports only while the qube is halted
    ``ephemeral_volatile`` (False)
        whether volatile volumes are encrypted with a key that is never stored
    ``volblocksize`` (16k)
        block size of new volumes: a power of two from 4k to 128k
    ``compression`` (lz4 in a new zpool, else inherited)
        the ZFS property ``compression``
    ``dedup`` (inherited)
        ``on-for-ever`` or ``off``; dedup slows down the whole zpool
    ``snap_on_start_forensics`` (False)
        whether a clone that start() made is kept after stop(), until the next
        start
    ``tag_qubes`` (True)
        whether qubes with a saved volume here have the tag ``zfs-pool-<pool>``
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
        """Take the options; qubes.xml may have those of a newer version."""
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
        """Claim the container, or create the zpool, when the pool is added.

        If it fails, everything that it created is destroyed again.

        :raises StoragePoolException: if an option has a bad value, or the
            container or the devices cannot be used
        """
        with prefixed(f"Cannot add the pool {self.name}"):
            container = self._options["container"]
            block_devices = self._options["block_devices"]
            if (container is None) == (block_devices is None):
                raise Refused(
                    "give either container=<dataset> (in a zpool that exists)"
                    " or block_devices=<devices> (to create a zpool on)"
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
                await claim.set_up(
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
        """Log a warning if the ZFS module is older than OLDEST_OPENZFS."""
        numbers = lzc.version_numbers()
        if numbers is not None and numbers < OLDEST_OPENZFS:
            LOG.warning(
                "pool %s: OpenZFS %s is older than 2.3.3, the oldest version"
                " this driver is tested with; update OpenZFS in dom0",
                self.name,
                lzc.module_version(),
            )

    async def _setup_zpool(self, devices: list[str]) -> None:
        """Create a zpool on empty devices; clear them again if it fails.

        :param devices: paths of block devices
        :raises Refused: if a zpool with the name of the pool is imported
        """
        if commands.zpool_imported(self.name):
            raise Refused(
                f"a zpool {self.name} already exists; to put qubes on it, add"
                f" the pool with container={self.name}",
            )
        async with probe.checked(devices) as disks:
            try:
                await self._create_zpool(disks)
            except BaseException:
                await self._clear_devices([disk.node for disk in disks])
                raise

    async def _create_zpool(self, disks: list[probe.Device]) -> None:
        """Create the zpool and the qubes root, or neither."""
        compression = self._options.text("compression") or "lz4"
        properties = {**policy.ZPOOL_ROOT_SETTINGS, naming.CLAIM: self.name}
        await newzpool.create(self.name, disks, compression, properties)
        try:
            await lzc.create_filesystem(self.qubes_root, policy.ROOT_SETTINGS)
        except BaseException:
            await commands.destroy_zpool(self.name)
            raise

    async def _clear_devices(self, devices: list[str]) -> None:
        """Remove all labels from devices that were empty before setup()."""
        try:
            await probe.make_empty_again(devices)
        except ZfsError as exc:
            LOG.error("pool %s: cannot clear a device: %s", self.name, exc)


def _parse_devices(text: str) -> list[str]:
    """Return the devices that the option ``block_devices`` names.

    :raises Refused: if it names none
    """
    try:
        return probe.split_devices(text)
    except ValueError as exc:
        raise Refused(str(exc)) from exc
