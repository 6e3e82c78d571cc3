# SPDX-License-Identifier: BSD-2-Clause
"""The generations of one volume: create, make current, commit, reset, remove.

The operations of the driver consist of these methods.  Each makes one atomic
change on disk; if a crash comes between two changes, it leaves garbage.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from ..zfs import channel, devices, lzc
from ..zfs.batch import Batch
from ..zfs.errors import Busy, Exists, NotFound, ZfsError
from . import holder, programs
from .container import LOG, Container, holder_mark
from .naming import VolumeName
from .programs import MoveOptions, Unchecked
from .state import NOTHING_MORE, MadeFrom, StateQuery, VolumeState

#: attempts to create a generation, if another process takes the name or
#: destroys the origin
TRIES = 5

Origin = Callable[[], AbstractAsyncContextManager[str]]


class Generations:
    """The generations of one volume.

    driver/content.py creates one for each volume object, and it exists as long
    as that object.  It has no state of its own: the disk and the Container have
    all of it.  The lock of the volume, in driver/volume.py, serialises the
    operations that call it.

    :ivar name: the name of the volume
    :ivar container: the container that the volume is in
    :ivar zpool: the zpool that the container is in
    :ivar pinned: the number of a revision that commit() does not prune
    """

    def __init__(
        self,
        name: VolumeName,
        container: Container,
        zpool: str,
        pinned: int | None = None,
    ) -> None:
        """Refer to the generations of the volume *name*."""
        self.name = name
        self.container = container
        self.zpool = zpool
        self.pinned = pinned

    @property
    def _volume(self) -> programs.Volume:
        limits = self.container.thresholds.limits
        return programs.Volume(self.name, limits, self.pinned)

    async def state(
        self, query: StateQuery = NOTHING_MORE, batch: Batch | None = None
    ) -> VolumeState:
        """Return the state of the volume, as ZFS reports it.

        :param query: what to report besides the basic state
        :param batch: the batch that the channel program joins
        :raises ZfsError: if ZFS cannot be asked
        """
        return await self.container.state(self.name, query, batch)

    # --- new generations

    async def build(
        self,
        make: Callable[[int, str], Awaitable[None]],
        state: VolumeState,
        first: int = 0,
        batch: Batch | None = None,
    ) -> tuple[int, str]:
        """Create a generation, which remains reserved.

        :param make: creates the zvol, from number and dataset; runs again if
            the name was taken or the origin was destroyed meanwhile
        :param state: of the volume, with ``numbers``
        :param first: the lowest number; 1 for clones, because a clone without
            a number belongs to an administrator
        :return: its number and its dataset
        :raises ZfsError: if ZFS refuses
        """
        for attempt in range(1, TRIES + 1):
            number = self.container.reserve_generation(
                self.name, state.numbers, first
            )
            dataset = self.name.generation(number)
            try:
                if not state.qube:
                    with contextlib.suppress(Exists):
                        await lzc.create_filesystem(
                            self.name.dataset, {}, state.mountable
                        )
                        self.container.created.add(self.name.dataset)
                await make(number, dataset)
                return number, dataset
            except (Exists, NotFound):
                self.container.unreserve(dataset)
                if attempt == TRIES:
                    raise
                state = await self.state(StateQuery(counted=True), batch)
            except BaseException:
                self.container.created.discard(self.name.dataset)
                await self._discard_unless_current(number, dataset, batch)
                raise
        raise AssertionError("unreachable")

    async def blank(
        self,
        size: int,
        blocksize: int,
        state: VolumeState,
        lasting: bool,
        batch: Batch | None = None,
    ) -> tuple[int, str]:
        """Create a blank generation, which remains reserved.

        :param size: bytes
        :param blocksize: bytes
        :param state: of the volume, with ``numbers``
        :param lasting: whether it remains reserved for longer than the call of
            make_current(), as an import does; it then gets its holder mark now.
            Otherwise make_current() sets the mark, which saves a transaction
            group
        :return: its number and its dataset
        :raises ZfsError: if ZFS refuses
        """

        async def make(_: int, dataset: str) -> None:
            mark = holder_mark() if lasting else {}
            await lzc.create_volume(dataset, size, blocksize, mark)
            await self.container.thresholds.measure(dataset)

        return await self.build(make, state, batch=batch)

    async def clone(
        self,
        origin: Origin,
        state: VolumeState,
        lasting: bool,
        batch: Batch | None = None,
    ) -> tuple[int, str]:
        """Clone a snapshot as a generation, which remains reserved.

        :param origin: returns a context manager that gives the snapshot
        :param state: of the volume, with ``numbers``
        :param lasting: as for blank()
        :return: its number and its dataset
        :raises ZfsError: if ZFS refuses
        """

        async def make(_: int, dataset: str) -> None:
            async with origin() as snapshot:
                mark = holder_mark() if lasting else {}
                await lzc.clone(dataset, snapshot, mark)

        return await self.build(make, state, first=1, batch=batch)

    # --- moving the pointer

    async def _move_pointer(
        self,
        number: int,
        how: MoveOptions,
        origin: str | None,
        batch: Batch | None,
    ) -> Unchecked:
        dataset = self.name.dataset
        created = dataset in self.container.created
        left = await programs.make_current(
            self._volume, number, how, holder.mark(), created, origin, batch
        )
        self.container.created.discard(dataset)
        return left

    async def make_current(
        self, number: int, how: MoveOptions, batch: Batch | None = None
    ) -> None:
        """Make the reserved generation *number* the current one.

        :raises ZfsError: if ZFS refuses; the generation is then destroyed
        """
        dataset = self.name.generation(number)
        try:
            left = await self._move_pointer(number, how, None, batch)
        except BaseException:
            await self._discard_unless_current(number, dataset, batch)
            raise
        self.container.unreserve(dataset)
        await self._collect_near(left)

    async def _discard_unless_current(
        self, number: int, dataset: str, batch: Batch | None
    ) -> None:
        """Destroy a generation after a failure, unless it is the current one.

        A channel program may have finished although its caller was cancelled.
        """
        try:
            state = await self.state(StateQuery(counted=True), batch)
        except BaseException:
            # garbage collection decides later
            self.container.unreserve(dataset)
            raise
        if state.current == number or number not in state.numbers:
            self.container.unreserve(dataset)
        else:
            await self.container.discard(dataset)

    async def make_clone_current(
        self,
        origin: Origin,
        state: VolumeState,
        how: MoveOptions,
        batch: Batch | None = None,
    ) -> int:
        """Clone a snapshot and make the clone the current generation.

        OpenZFS 2.4 clones in the program that moves the pointer.  Older
        versions need a transaction group more for the clone.

        :param origin: returns a context manager that gives the snapshot
        :param state: of the volume, with ``numbers``
        :return: the number of the generation
        :raises ZfsError: if ZFS refuses
        """
        if not await channel.clones_in_programs(self.zpool):
            number, _ = await self.clone(origin, state, False, batch)
            await self.make_current(number, how, batch)
            return number

        left: Unchecked = ()

        async def make(number: int, _: str) -> None:
            nonlocal left
            async with origin() as snapshot:
                left = await self._move_pointer(number, how, snapshot, batch)

        number, dataset = await self.build(make, state, first=1, batch=batch)
        self.container.unreserve(dataset)
        await self._collect_near(left)
        return number

    # --- committing

    async def commit(self, keep: int, batch: Batch | None = None) -> None:
        """Commit the current content as a revision, and prune old revisions.

        If it is uncertain whether the volume is modified, measure first.

        :param keep: revisions to keep; -1: make none
        :raises ZfsError: if ZFS refuses
        """
        left = await programs.commit(self._volume, keep, batch=batch)
        if left is None:
            await self.container.measure_beside(self.name)
            left = await programs.commit(self._volume, keep, True, batch)
        await self._collect_near(left or ())

    async def reset(
        self, made_from: MadeFrom, batch: Batch | None = None
    ) -> None:
        """Roll the current generation back to its baseline snapshot.

        :param made_from: what the volume would be made from now
        :raises Busy: if a process has the generation open
        :raises NotFound: if the generation cannot be reset
        :raises ZfsError: if ZFS refuses
        """

        async def once() -> None:
            try:
                await programs.reset(self._volume, made_from, batch)
            except Exists as exc:
                # ZFS refuses the rollback if a bookmark is newer than the
                # baseline snapshot; such a bookmark is of discarded content
                if not await lzc.destroy_bookmarks_of(exc.dataset):
                    raise
                await programs.reset(self._volume, made_from, batch)

        await devices.retry_busy(self.name.dataset, once, devices.PROBE_LIMIT)

    async def _collect_near(self, left: Unchecked) -> None:
        """Collect what a change could not destroy, usually because of udev.

        Otherwise it would use space until the next removal or start of qubesd.
        """
        if left:
            try:
                await self.container.collect_near(left)
            except ZfsError as exc:
                LOG.debug(
                    "cannot collect garbage of %s: %s", self.name.dataset, exc
                )

    @contextlib.asynccontextmanager
    async def temporary_snapshot(
        self, batch: Batch | None = None
    ) -> AsyncIterator[str]:
        """Take a snapshot of a volume without revisions; drop it on exit.

        :raises ZfsError: if ZFS refuses
        """
        made: list[str] = []
        try:
            yield await programs.take_temporary(
                self._volume, made.append, batch
            )
        finally:
            for snapshot in made:
                await programs.drop_temporary(self._volume, snapshot, batch)

    # --- removal

    async def remove(
        self, only_disposable: bool = False, batch: Batch | None = None
    ) -> None:
        """Remove the volume: its pointer, its revisions and its generations.

        A generation that a process has open remains as garbage.  So does one
        that an export uses, until the export ends.

        :param only_disposable: do nothing unless the volume is disposable
        :raises ZfsError: if ZFS refuses
        """
        where = self.name
        busy = [
            x for x in self.container.reserved if where.number_of(x) is not None
        ]
        origins: list[str] = []
        retry = False

        async def once() -> bool:
            nonlocal retry
            removed = await programs.remove(
                self._volume, busy, only_disposable, retry, batch
            )
            retry = True
            origins.extend(removed.origins)
            if removed.bookmarks:
                # ZFS refuses to roll back or promote a dataset with these
                await lzc.destroy_bookmarks(removed.bookmarks)
                return await once()
            if removed.unfreed is not None:
                raise Busy(removed.unfreed, call="rollback")
            return removed.busy is not None

        try:
            busy_left = await devices.retry_busy(where.dataset, once)
        except Busy as exc:
            LOG.warning(
                "cannot free the space of %s now, it is freed later: %s",
                where.dataset,
                exc,
            )
            busy_left = True
        if busy_left:
            # no pointer names it now, so it is garbage
            await self.container.collect_patiently(where.dataset)
        await self.container.collect_near(origins)
