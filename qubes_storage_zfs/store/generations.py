"""The generations of one volume: made, pointed to, committed, forgotten.

What the verbs of a volume are made of.  Every function here is one change on
disk, or one that a crash turns into garbage for the janitor.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..zfs import channel, devices, lzc
from ..zfs.batch import Batch
from ..zfs.errors import Busy, Exists, NotFound, ZfsError
from . import naming
from .container import LOG, Container, holder_mark
from .naming import VolumeName
from .state import StateQuery, VolumeState

#: how often a lost race for a name or an origin is run again
TRIES = 5

#: what a program gives for the janitor to look at; a list in Lua
Left = Mapping[str, str]
Origin = Callable[[], AbstractAsyncContextManager[str]]


class Generations:
    """The zvols of one volume.

    :ivar where: its names
    :ivar store: the container it is in
    :ivar pinned: the number of a revision that is not to be pruned
    """

    def __init__(
        self,
        where: VolumeName,
        store: Container,
        zpool: str,
        pinned: int | None = None,
    ) -> None:
        self.where = where
        self.store = store
        self.zpool = zpool
        self.pinned = pinned

    async def _change(
        self, program: str, batch: Batch | None = None, **more: Any
    ) -> Any:
        if self.pinned is not None:
            more["pinned"] = self.pinned
        return await channel.change(
            program,
            self.where.dataset,
            {
                **self.where.arguments,
                **self.store.thresholds.arguments,
                **more,
            },
            batch=batch,
        )

    async def state(
        self, *want: str, batch: Batch | None = None, **asked: Any
    ) -> VolumeState:
        """Ask ZFS about the volume.

        :param asked: as StateQuery has it
        :param batch: ask together with the tasks of this batch
        :raises ZfsError: if ZFS cannot be asked
        """
        question = StateQuery(want, **asked)
        return await self.store.state(self.where, question, batch)

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
            number = self.store.take(self.where, state.numbers, first)
            dataset = self.where.generation(number)
            try:
                if not state.qube:
                    with contextlib.suppress(Exists):
                        await lzc.create_filesystem(
                            self.where.dataset, {}, state.mountable
                        )
                        self.store.created.add(self.where.dataset)
                await make(number, dataset)
                return number, dataset
            except (Exists, NotFound):
                self.store.release(dataset)
                if attempt == TRIES:
                    raise
                state = await self.state(counted=True, batch=batch)
            except BaseException:
                self.store.created.discard(self.where.dataset)
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
            beginning; else adopt() sets that, a transaction group less
        """

        async def make(_: int, dataset: str) -> None:
            mark = holder_mark() if lasting else {}
            await lzc.create_volume(dataset, size, blocksize, mark)
            await self.store.thresholds.measure(dataset)

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
        self, number: int, batch: Batch | None = None, **more: Any
    ) -> Left:
        left: Left = await self._change(
            "adopt",
            batch,
            number=number,
            holder=naming.HOLDER,
            mark=holder_mark()[naming.HOLDER],
            created=self.where.dataset in self.store.created,
            **more,
        )
        self.store.created.discard(self.where.dataset)
        return left

    async def adopt(
        self, number: int, batch: Batch | None = None, **more: Any
    ) -> None:
        """Generation *number*, which is in hand, becomes the current one.

        :param more: scratch, size, keep, promote, begun_from; see
            adopt.lua
        """
        dataset = self.where.generation(number)
        try:
            left = await self._move_pointer(number, batch, **more)
        except BaseException:
            await self._discard_unless_current(number, dataset, batch)
            raise
        self.store.release(dataset)
        await self._tidy(left)

    async def _discard_unless_current(
        self, number: int, dataset: str, batch: Batch | None
    ) -> None:
        """A cancelled program may have run to its end all the same."""
        try:
            state = await self.state(counted=True, batch=batch)
        except BaseException:
            # the janitor will know
            self.store.release(dataset)
            raise
        if state.current == number or number not in state.numbers:
            self.store.release(dataset)
        else:
            await self.store.discard(dataset)

    async def adopt_clone(
        self,
        origin: Origin,
        state: VolumeState,
        batch: Batch | None = None,
        **more: Any,
    ) -> int:
        """A clone of a snapshot becomes the current generation; its number.

        OpenZFS 2.4 clones within the program that moves the pointer; before
        2.4 the clone is a transaction group of its own.
        """
        if not await channel.clones_in_programs(self.zpool):
            number, _ = await self.clone(origin, state, False, batch)
            await self.adopt(number, batch, **more)
            return number

        left: Left = {}

        async def make(number: int, _: str) -> None:
            nonlocal left
            async with origin() as snapshot:
                left = await self._move_pointer(
                    number, batch, origin=snapshot, **more
                )

        number, dataset = await self.build(make, state, first=1, batch=batch)
        self.store.release(dataset)
        await self._tidy(left)
        return number

    # --- committing

    async def commit(self, keep: int, batch: Batch | None = None) -> None:
        """What changed becomes a revision; older ones are pruned.

        What is in doubt until this process has measured, it measures first.
        """
        left = await self._change("commit", batch, keep=keep)
        if "unsure" in left:
            await self.store.measure_beside(self.where)
            left = await self._change(
                "commit", batch, keep=keep, unmeasured=True
            )
        await self._tidy(left)

    async def reset(
        self,
        size: str,
        source: VolumeName | None,
        batch: Batch | None = None,
    ) -> None:
        """The current generation becomes again what adopt() made it.

        :param size: with *source*: what would be made now, as StateQuery has it
        :raises Busy: if somebody has it open
        :raises NotFound: if it is none that can be that
        """
        made_from = StateQuery(size=size, source=source).made_from()

        async def once() -> None:
            try:
                await self._change("reset", batch, **made_from)
            except Exists as exc:
                # bookmarks newer than its beginning: of content that goes
                if not await lzc.destroy_bookmarks_of(exc.dataset):
                    raise
                await self._change("reset", batch, **made_from)

        await devices.retry_busy(self.where.dataset, once, devices.GLANCE_LIMIT)

    async def _tidy(self, left: Left) -> None:
        """What a change left goes now: else it would take its space until
        the next removal or start of qubesd.  Mostly udev had it open."""
        if left:
            try:
                await Container.sweep_again(left.values())
            except ZfsError as exc:
                LOG.debug("%s not tidied: %s", self.where.dataset, exc)

    @contextlib.asynccontextmanager
    async def frozen(self, batch: Batch | None = None) -> AsyncIterator[str]:
        """A passing snapshot of a volume that keeps no revisions."""
        made: list[str] = []
        try:
            yield await channel.change(
                "freeze",
                self.where.dataset,
                self.where.arguments,
                made.append,
                batch,
            )
        finally:
            for snapshot in made:
                await self._change("thaw", batch, snapshot=snapshot)

    # --- going

    async def forget(
        self, discarded: bool = False, batch: Batch | None = None
    ) -> None:
        """Pointer, revisions and generations go, as far as they can.

        :param discarded: only if the content of the current one is discarded
        """
        where = self.where
        busy = {
            name: True
            for name in self.store.in_hand
            if where.number_of(name) is not None
        }
        origins: list[str] = []
        again = False

        async def once() -> bool:
            nonlocal again
            gone = await self._change(
                "forget",
                batch,
                busy=busy,
                discarded=discarded,
                again=again,
                holder=naming.HOLDER,
                prefix=naming.POINTER,
            )
            again = True
            origins.extend(gone["origins"].values())
            if gone["bookmarks"]:
                # ZFS would refuse the rollback, and promote with them
                await lzc.destroy_bookmarks(gone["bookmarks"].values())
                return await once()
            if "unfreed" in gone:
                raise Busy(gone["unfreed"], call="rollback")
            return "busy" in gone

        try:
            busy_left = await devices.retry_busy(where.dataset, once)
        except Busy as exc:
            LOG.warning("space of %s is not freed yet: %s", where.dataset, exc)
            busy_left = True
        if busy_left:
            # no pointer names it any more: if it stays, the janitor has it
            await self.store.sweep_patiently(where.dataset)
        await Container.sweep_again(origins)
