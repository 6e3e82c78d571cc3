# SPDX-License-Identifier: BSD-2-Clause
"""The generations of one volume: made, pointed to, committed, forgotten.

What the verbs of a volume are made of.  Every function here is one change on
disk, or one that a crash turns into garbage for the janitor.
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

#: how often a lost race for a name or an origin is run again
TRIES = 5

Origin = Callable[[], AbstractAsyncContextManager[str]]


class Generations:
    """The zvols of one volume.

    :ivar name: its names
    :ivar container: the container it is in
    :ivar pinned: the number of a revision that is not to be pruned
    """

    def __init__(
        self,
        name: VolumeName,
        container: Container,
        zpool: str,
        pinned: int | None = None,
    ) -> None:
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
        """Ask ZFS about the volume.

        :param batch: ask together with the tasks of this batch
        :raises ZfsError: if ZFS cannot be asked
        """
        return await self.container.state(self.name, query, batch)

    # --- making

    async def build(
        self,
        make: Callable[[int, str], Awaitable[None]],
        state: VolumeState,
        first: int = 0,
        batch: Batch | None = None,
    ) -> tuple[int, str]:
        """Make a new generation; it stays in hand.  Number and dataset.

        :param state: of the volume, with the numbers of its generations
        :param make: given number and dataset; run again if a name or an
            origin went away under it
        :param first: the lowest number; 1 for clones, which the janitor
            tells from somebody else's by their number
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
        """An empty generation of *size* bytes, in hand.

        :param lasting: it is in hand for long, and bears its mark from the
            beginning; else make_current() sets that, a transaction group less
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
        """A generation that is a clone of a snapshot, in hand.

        :param lasting: as for blank()
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
        """Generation *number*, which is in hand, becomes the current one."""
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
        """A cancelled program may have run to its end all the same."""
        try:
            state = await self.state(StateQuery(counted=True), batch)
        except BaseException:
            # the janitor will know
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
        """A clone of a snapshot becomes the current generation; its number.

        OpenZFS 2.4 clones within the program that moves the pointer; before
        2.4 the clone is a transaction group of its own.
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
        """What changed becomes a revision; older ones are pruned.

        What is in doubt until this process has measured, it measures first.
        """
        left = await programs.commit(self._volume, keep, batch=batch)
        if left is None:
            await self.container.measure_beside(self.name)
            left = await programs.commit(self._volume, keep, True, batch)
        await self._collect_near(left or ())

    async def reset(
        self, made_from: MadeFrom, batch: Batch | None = None
    ) -> None:
        """The current generation becomes again what make_current() made it.

        :param made_from: what would be made now
        :raises Busy: if somebody has it open
        :raises NotFound: if it is none that can be that
        """

        async def once() -> None:
            try:
                await programs.reset(self._volume, made_from, batch)
            except Exists as exc:
                # bookmarks newer than its beginning: of content that goes
                if not await lzc.destroy_bookmarks_of(exc.dataset):
                    raise
                await programs.reset(self._volume, made_from, batch)

        await devices.retry_busy(self.name.dataset, once, devices.PROBE_LIMIT)

    async def _collect_near(self, left: Unchecked) -> None:
        """What a change left goes now: else it would take its space until
        the next removal or start of qubesd.  Mostly udev had it open."""
        if left:
            try:
                await self.container.collect_near(left)
            except ZfsError as exc:
                LOG.debug("%s not tidied: %s", self.name.dataset, exc)

    @contextlib.asynccontextmanager
    async def temporary_snapshot(
        self, batch: Batch | None = None
    ) -> AsyncIterator[str]:
        """A passing snapshot of a volume that keeps no revisions."""
        made: list[str] = []
        try:
            yield await programs.take_temporary(
                self._volume, made.append, batch
            )
        finally:
            for snapshot in made:
                await programs.drop_temporary(self._volume, snapshot, batch)

    # --- going

    async def remove(
        self, only_disposable: bool = False, batch: Batch | None = None
    ) -> None:
        """Pointer, revisions and generations go, as far as they can.

        :param only_disposable: only if the content of the current one is discarded
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
                # ZFS would refuse the rollback, and promote with them
                await lzc.destroy_bookmarks(removed.bookmarks)
                return await once()
            if removed.unfreed is not None:
                raise Busy(removed.unfreed, call="rollback")
            return removed.busy is not None

        try:
            busy_left = await devices.retry_busy(where.dataset, once)
        except Busy as exc:
            LOG.warning("space of %s is not freed yet: %s", where.dataset, exc)
            busy_left = True
        if busy_left:
            # no pointer names it any more: if it stays, the janitor has it
            await self.container.collect_patiently(where.dataset)
        await self.container.collect_near(origins)
