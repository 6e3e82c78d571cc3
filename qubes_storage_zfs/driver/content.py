# SPDX-License-Identifier: BSD-2-Clause
"""The content of one volume on disk, and the checks before it is used.

All other parts of a volume read the disk through this module.  It builds the
volume's names, checks that the container belongs to the pool, and refuses
properties that are not allowed.
"""

import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import replace

from ..store import messages, naming, policy
from ..store.container import Container
from ..store.generations import Generations
from ..store.messages import Refused
from ..store.naming import VolumeName
from ..store.pointer import VolumeSpec
from ..store.state import NOTHING_MORE, MadeFrom, StateQuery, VolumeState
from ..zfs.batch import Batch
from ..zfs.errors import ReadOnlyDataset
from . import features
from .admin import Qube
from .interface import Pool, Volume


class Content:
    """The content of one volume.

    The volume creates it, and it lasts as long as the volume.  Methods that
    change the disk are called within an operation of the volume.

    :ivar volume: the volume
    :ivar size: size of the volume on disk, in bytes; for a disposable volume,
        size of the next generation.  It is not read from ZFS when qubesd reads
        it
    """

    def __init__(self, volume: Volume, size: int) -> None:
        """Read nothing from the disk yet.

        :param size: size in bytes, as in qubes.xml
        """
        self.volume = volume
        self.size = size
        self._generations: Generations | None = None

    # --- names and settings

    @property
    def pool(self) -> Pool:
        """The pool of the volume."""
        return self.volume.pool

    @property
    def store(self) -> Container:
        """The container of the pool."""
        return self.volume.pool.store

    @functools.cached_property
    def where(self) -> VolumeName:
        """The volume's names in ZFS.

        :raises BadName: if the vid cannot be a name in ZFS
        """
        return naming.volume_name(self.pool.qubes_root, self.volume.vid)

    @property
    def generations(self) -> Generations:
        """The generations of the volume.

        The object is replaced only if the qube's feature names another
        revision.

        :raises BadName: if the vid cannot be a name in ZFS
        """
        pinned = self._pinned
        if self._generations is None or self._generations.pinned != pinned:
            self._generations = Generations(
                self.where, self.store, self.pool.zpool, pinned
            )
        return self._generations

    @property
    def vm(self) -> Qube | None:
        """The qube that has the volume; None if no qube has it."""
        app, name = self.volume.app, self.volume.qube
        if app is None or name is None:
            return None
        try:
            return app.domains[name]
        except (AttributeError, KeyError, TypeError):
            return None

    @property
    def reset_to(self) -> str | None:
        """The revision that each start resets the volume to.

        The qube's feature names it.  BLANK of features.py stands for an empty
        volume, None for no reset.
        """
        return features.reset_to(self.vm, self.volume.name)

    @property
    def _pinned(self) -> int | None:
        """The number of the revision that each start resets the volume to."""
        revision = self.reset_to
        if revision in (None, features.BLANK):
            return None
        return naming.revision_number(str(revision))

    @property
    def blocksize(self) -> int:
        """The block size of new generations, in bytes."""
        properties = features.zfs_properties(self.vm, self.volume.name)
        return int(properties.get(features.VOLBLOCKSIZE, self.pool.blocksize))

    @property
    def source(self) -> VolumeName | None:
        """The names of the source in ZFS; None if the volume has no source."""
        source = self.volume.source
        return source.where if source is not None else None

    @property
    def made_from(self) -> MadeFrom:
        """The size, block size and source of a new disposable volume."""
        size, block = self.in_blocks(self.volume.size), self.blocksize
        own_block = block if block != self.pool.blocksize else None
        return MadeFrom(VolumeSpec(size, own_block), self.source)

    # --- sizes

    def in_blocks(self, size: int, block: int = 0) -> int:
        """Round *size* up to whole blocks, at least one.

        :param size: bytes
        :param block: a block size in bytes; a larger one of the volume counts
        :return: bytes
        """
        block = max(block, self.blocksize)
        return max(1, -(-size // block)) * block

    def rounded(self, size: int | str, block: int = 0) -> int:
        """Check a size from a client, and round it up as in_blocks() does.

        :param size: bytes
        :param block: a block size in bytes; a larger one of the volume counts
        :return: bytes
        :raises Refused: if it is not a size
        """
        try:
            number = int(size)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not 0 <= number <= 1 << 60:
            raise Refused(messages.BAD_SIZE, size=size)
        return self.in_blocks(number, block)

    async def read_size(self) -> None:
        """Read the size from ZFS after the content was replaced."""
        state = await self.state(StateQuery(("volsize",)))
        self.size = int(state.properties["volsize"])

    async def data_bytes(self) -> int:
        """Return the bytes of data before compression, 0 if there is no volume.

        :raises ZfsError: if ZFS cannot be asked
        """
        name = "logicalreferenced"
        state = await self.generations.state(StateQuery((name,)))
        return int(state.properties.get(name, 0))

    # --- reading and checking the disk

    async def unlock(self) -> None:
        """Check the pool, and load its key if needed.

        Each operation that a user waits for starts with this.
        """
        await self.pool.must_be_allowed()
        await self.pool.unlock(self.volume.qube, self.volume.app)
        await self.pool.first_use()

    async def state(
        self, query: StateQuery = NOTHING_MORE, batch: Batch | None = None
    ) -> VolumeState:
        """Read the state of the volume from a container of this pool.

        :param query: which parts of the state to read
        :param batch: run the channel program in this batch
        :raises StoragePoolException: if the container is missing or is not
            this pool's
        """
        state = await self.generations.state(query, batch)
        self.pool.check_container(state)
        return state

    async def state_to_open(
        self, query: StateQuery, batch: Batch | None = None
    ) -> VolumeState:
        """Read the state as state() does, and check the volume's properties.

        Call it before the volume is opened, or a path to it is returned.  A
        property may have been changed since the pool was checked.

        :raises NotAllowed: if the volume, or the dataset that a new generation
            inherits from, has a property with a value that is not allowed
        :raises ReadOnlyDataset: if the volume is writable for the qube, but has
            readonly=on
        """
        is_writable = bool(self.volume.rw)
        query = replace(query, checked=True, writable=is_writable)
        state = await self.state(query, batch)
        if state.violation is not None:
            raise policy.NotAllowed(self.pool.qubes_root, state.violation)
        if state.read_only_by is not None:
            raise ReadOnlyDataset(state.read_only_by)
        return state

    def must_exist(self, state: VolumeState) -> int:
        """Return the number of the current generation.

        :raises Refused: if there is none
        """
        if state.current is None:
            dataset = self.where.dataset
            raise Refused(messages.MISSING_VOLUME, dataset=dataset)
        return state.current

    async def verify(self) -> None:
        """Check that the next start finds the data that it needs.

        :raises Refused: if the volume or its source is missing
        """
        state = await self.state()
        source = self.volume.source
        if source is not None:
            if not await source.exists():
                raise Refused(messages.MISSING_SOURCE, source=source.vid)
        elif self.volume.save_on_stop:
            self.must_exist(state)

    # --- creating generations, reading the committed state

    async def make_blank(
        self,
        size: int | str,
        state: VolumeState,
        lasting: bool,
        batch: Batch | None = None,
    ) -> tuple[int, str]:
        """Create an empty generation, and reserve it.

        :param size: bytes
        :param state: state of the volume, with the numbers of its generations
        :param lasting: as for Generations.blank()
        :return: number and dataset of the generation
        """
        return await self.generations.blank(
            self.rounded(size), self.blocksize, state, lasting, batch
        )

    @contextlib.asynccontextmanager
    async def committed(self, batch: Batch | None = None) -> AsyncIterator[str]:
        """Return the snapshot of the committed state, within a context.

        A volume without snapshots gets a temporary one, which is destroyed when
        the context ends.

        :param batch: the batch of the operation that clones the snapshot
        :raises Refused: if the volume has no snapshots and its qube runs
        """
        await self.pool.must_be_allowed()
        state = await self.state(batch=batch)
        self.must_exist(state)
        if self.volume.snapshots_disabled:
            if self.volume.is_running():
                raise Refused(messages.SNAPSHOTS_DISABLED)
            async with self.generations.temporary_snapshot(batch) as snapshot:
                yield snapshot
            return
        yield state.committed or await self._newest_revision(batch)

    async def _newest_revision(self, batch: Batch | None) -> str:
        """Return the newest revision on disk; commit one if there is none.

        Volumes of older versions of this driver lack the property that names
        the committed state.  And an administrator may have destroyed the
        snapshot that the property names.

        :raises Refused: if there is no revision after the commit
        """
        state = await self.state(StateQuery(revisions=True), batch=batch)
        if not state.revisions:
            keep = self.volume.revisions_to_keep
            await self.generations.commit(keep, batch)
            state = await self.state(StateQuery(revisions=True), batch=batch)
        if not state.revisions:
            raise Refused(messages.NO_REVISIONS)
        return state.revisions[-1].snapshot
