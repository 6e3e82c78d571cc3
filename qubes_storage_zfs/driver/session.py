"""A volume from its start to its stop: given to a qube, committed or discarded.

What nobody keeps is taken back, when it has stopped, to what it was when it was
made.  Then it is ready: the next start finds it as fresh as a new one, and
waits for nothing.
"""

import asyncio
import contextlib
import logging
from typing import Any

from qubes.storage import StoragePoolException

from ..store import messages, naming, policy
from ..store.container import State
from ..store.naming import VolumeName
from ..zfs import channel, commands, devices, lzc
from ..zfs.errors import Busy, Locked, NotFound, ZfsError
from . import features, halting
from .errors import refusal, sentence, told
from .transfer import Transfer, locked

LOG = logging.getLogger("qubes.storage.zfs")


def _is_begun(state: State, wanted: str) -> bool:
    """Whether a volume that is reset at each start was, and not written to."""
    newest = state.revisions[-1].number if state.revisions else None
    begun = state.begun_from == wanted and state.begun is not None
    return begun and state.begun == newest and not state.dirty


class Session(Transfer):
    """The part of ZfsVolume that qubesd calls each time a qube runs.

    :ivar _ready: it is as fresh as a new one, for the next start
    :ivar _due: it is to be made so, unless a verb comes first
    :ivar _session_size: bytes; what a clone was resized to while its qube runs
    :ivar _times_committed: by this object
    :ivar _not_ours: create() found a volume of another qube in its place
    """

    _ready = False
    _due = False
    _preparing: asyncio.Task[None] | None = None
    _session_size: int | None = None
    _times_committed = 0
    _not_ours = False
    snap_on_start_forensics: bool

    @property
    def _source(self) -> VolumeName | None:
        return self.source.where if self.source is not None else None

    @property
    def _made_from(self) -> dict[str, Any]:
        """As Question has it: what nobody keeps, if it is made now."""
        return {
            "size": self._made_by(self._in_blocks(self.size)),
            "source": self._source,
        }

    def _made_by(self, size: int) -> str:
        """All that a blank volume of *size* bytes is made by."""
        block = self.blocksize
        return f"{size}/{block}" if block != self.pool.blocksize else str(size)

    @property
    def _qube_key(self) -> str:
        """The same for all volumes of a qube in a pool, whatever their names
        on disk."""
        return f"{self.pool.home} {self.qube or self.vid}"

    def _in_use(self) -> bool:
        return self._given is not None or bool(self.is_running())

    async def _adopt_blank(self, what: str, state: State, **how: Any) -> int:
        """An empty generation becomes the current one; its number.

        :param how: as Generations.adopt() takes it
        """
        number, _ = await self._blank(self._size, what, state, False)
        await self.generations.adopt(number, **how)
        self._size = self._rounded(self._size, what)
        return await self._tuned(number, None)

    async def start(self) -> "Session":
        """Give the volume to its qube.

        A source whose qube has just ended is committed first, so that the
        clone is of its newest state.
        """
        await halting.stopped(self.source)
        return await self._start()

    @locked
    async def _start(self) -> "Session":
        what = self._cannot("start")
        ready, self._ready, self._due = self._ready, False, False
        self._session_size = None
        with told(what):
            with channel.together(self._qube_key):
                await self.pool.first_use()
                await self.pool.must_be_allowed()
                await self.pool.must_be_unlocked()
                await self._end_abandoned_import(what)
                if self.save_on_stop:
                    current = await self._start_kept(what)
                else:
                    current = await self._start_scratch(what, ready)
            self._given, self._stopped = current, False
            self._awaited_in_vain = False
            path = await devices.wait_for_link(self.where.generation(current))
            if self.save_on_stop:
                await self._learn_size_of(path, current)
        return self

    async def _learn_size_of(self, path: str, number: int) -> None:
        """What was reset to a smaller one becomes as large as it was made."""
        dataset = self.where.generation(number)
        size = await lzc.in_thread(dataset, devices.size_of, path)
        if self._reset_to is not None and size < self._size:
            await commands.set_property(dataset, "volsize", str(self._size))
        else:
            self._size = size

    async def _start_kept(self, what: str) -> int:
        """The generation that a qube goes on with; its number."""
        wanted = self._reset_to
        if wanted is not None:
            return await self._begin_anew(what, wanted)
        state = await self._state_to_open(tuned=True)
        return await self._tuned(self._must_exist(state, what), state.tuned)

    async def _begin_anew(self, what: str, wanted: str) -> int:
        """A fresh copy of a revision, or a blank one; what the qube left in
        the one before stays as a revision."""
        state = await self._state_to_open(revisions=True, tuned=True)
        current = self._must_exist(state, what)
        if _is_begun(state, wanted):
            # what was written lately, ZFS may not tell yet
            async with devices.flushed(self.where.generation(current)):
                await lzc.sync(self.pool.zpool)
            state = await self._state(revisions=True, tuned=True)
        if _is_begun(state, wanted):
            return await self._tuned(current, state.tuned)
        how: dict[str, Any] = {
            "keep": self.revisions_to_keep,
            "begun_from": wanted,
        }
        if wanted == features.BLANK:
            number = await self._adopt_blank(what, state, **how)
        else:
            snapshots = {x.id: x.snapshot for x in state.revisions}
            if wanted not in snapshots:
                why = messages.NOTHING_TO_RESET_TO.format(
                    revision=wanted, qube=self.qube, volume=self.name
                )
                raise refusal(what, why)
            origin = snapshots[wanted]
            number = await self.generations.adopt_clone(
                lambda: contextlib.nullcontext(origin), state, **how
            )
            await self._tuned(number, None)
        await self._outdate_clones()
        return number

    async def _tuned(self, number: int, before: str | None) -> int:
        """Have a generation what the qube's features say; its number.

        :param before: what it has by them, or had before
        """
        wanted = features.wanted(self._owner, self.name)
        wanted.pop(features.VOLBLOCKSIZE, None)
        after = " ".join(f"{name}={value}" for name, value in wanted.items())
        if after == (before or ""):
            return number
        dataset = self.where.generation(number)
        for word in (before or "").split():
            name = word.partition("=")[0]
            if name in features.EVER_SET and name not in wanted:
                await commands.inherit(dataset, name)
        if wanted:
            mark = {naming.TUNED: after}
            await commands.set_properties(dataset, {**wanted, **mark})
        else:
            await commands.inherit(dataset, naming.TUNED)
        return number

    async def _start_scratch(self, what: str, ready: bool) -> int:
        """A generation whose content nobody keeps; its number.

        :param ready: the current one was taken back
        """
        size = self._rounded(self.size, what)
        state = await self._state_to_open(
            counted=True, tuned=True, **self._made_from
        )
        if state.usable and state.current is not None:
            try:
                if not ready or state.touched:
                    await self.generations.reset(**self._made_from)
                return await self._tuned(state.current, state.tuned)
            except (Busy, NotFound) as exc:
                LOG.info("%s is made anew: %s", self.vid, exc)
                state = await self._state(counted=True)
        how: dict[str, Any] = {"scratch": True, "size": self._made_by(size)}
        if self.source is not None:
            number = await self.generations.adopt_clone(
                self.source.committed, state, **how
            )
            return await self._tuned(number, None)
        return await self._adopt_blank(what, state, **how)

    @locked
    async def stop(self) -> "Session":
        """Commit or discard; called for every halted qube at qubesd's start,
        for volumes that never were and before every removal.

        It does not raise what ZFS answers: an exception here would keep
        qubesd from removing any volume of the qube, and would tell nobody.
        Nothing is lost by it: what was not committed stays as it is, and the
        next stop() or start() goes on from there.

        What was written to a volume that nobody keeps goes afterwards, and
        is not waited for; see prepare().
        """
        self._awaited_in_vain = False
        try:
            with channel.together(self._qube_key):
                committed = await self._commit_or_discard()
            self._given, self._stopped = None, True
            if committed:
                await self._outdate_clones()
        except (ZfsError, naming.BadName, OSError) as exc:
            LOG.error("%s", sentence(self._cannot("stop"), exc))
        if self._due:
            self._prepare_later()
        return self

    async def _commit_or_discard(self) -> bool:
        """Whether there may be a new revision."""
        self._ready = self._due = False
        self._session_size = None
        await self.pool.first_use()
        times = self._source_times()
        current, needed = self._given, True
        if current is None:
            state = await self.generations.state(
                revisions=self.save_on_stop,
                **self._made_from,
            )
            if state.owner != self.pool.name or not self._owns(state):
                return False
            if state.unsure and await self.store.measure_beside(self.where):
                state = await self.generations.state(revisions=True)
            current = state.current
            # what was written lately, ZFS may not tell yet
            needed = self.is_running() or self._unfinished(state)
        if current is None:
            return False
        if self.save_on_stop:
            return needed and await self._commit(current)
        if self._kept_for_forensics():
            return False
        if not self._has_next_start():
            await self.generations.forget()
        else:
            # was it ready when the source looked?
            self._ready = not needed and times == self._source_times()
            self._due = not self._ready
        return False

    def _unfinished(self, state: State) -> bool:
        """Whether a stop() has something to do, by what ZFS tells."""
        if not self.save_on_stop:
            return state.touched or not state.usable
        keep = self.revisions_to_keep
        pinned = self._pinned
        older = [x for x in state.revisions[:-1] if x.number != pinned]
        surplus = len(older) > keep
        return state.frozen or surplus or (keep >= 0 and state.dirty)

    async def _commit(self, current: int) -> bool:
        keep = self.revisions_to_keep
        if keep < 0:
            await self.generations.commit(keep)
            return False
        async with devices.flushed(self.where.generation(current)):
            await self.generations.commit(keep)
        return True

    # --- between a stop and a start

    def prepare(self) -> None:
        """Have what the next start needs made, if nobody keeps the content.

        It is made when what is asked of the qube's volumes now has ended, and
        nobody waits for it.  A verb that comes first finds the volume as it
        was.
        """
        kept = self.save_on_stop or self._kept_for_forensics()
        if not self._in_use() and not kept and self._has_next_start():
            self._due = True
            self._prepare_later()

    def follow_source(self) -> None:
        """The volume has another source: prepare it again, or have what was
        prepared of the former one destroyed."""
        if not self._kept_for_forensics():
            self._preparing = asyncio.create_task(
                self._follow_source(), name=f"prepare {self.vid}"
            )

    async def _follow_source(self) -> None:
        await halting.stopped(self)
        if not self._in_use():
            self._due = True
            await self._prepare()

    async def idle(self) -> None:
        """Wait until nothing is being prepared."""
        if self._preparing is not None and not self._preparing.done():
            await asyncio.wait([self._preparing])

    def _successor(self) -> Any:
        """The volume that its qube has instead of this one, which qubesd makes
        when the qube gets another template; None if it has this one."""
        volumes = getattr(self._owner, "volumes", None) or {}
        other = volumes.get(self.name)
        return None if other is self else other

    def _prepare_later(self) -> None:
        # the loop alone would not keep it from being collected
        self._preparing = asyncio.create_task(
            self._prepare(), name=f"prepare {self.vid}"
        )

    async def _prepare(self) -> None:
        await channel.over(self._qube_key)
        with channel.together(f"next start of {self._qube_key}"):
            await self._prepare_now()

    @locked
    async def _prepare_now(self) -> None:
        due, self._due = self._due, False
        if not due:
            return
        successor = self._successor()
        what = self._cannot("prepare")
        try:
            with told(what):
                await self.pool.first_use()
                if successor is not None:
                    await self._leave_to(successor)
                elif await self._can_be_prepared():
                    await self._make_next(what)
                else:
                    await self._discard()
        except StoragePoolException as exc:
            LOG.warning("%s", exc)

    async def _leave_to(self, successor: Any) -> None:
        place = successor.pool.name, successor.vid
        if place != (self.pool.name, self.vid):
            await self.generations.forget(discarded=True)

    async def _can_be_prepared(self) -> bool:
        """Not without the key, for which no person is asked, or where what is
        on disk is not allowed."""
        try:
            await self.pool.must_be_allowed()
            await self.pool.must_be_unlocked()
        except (Locked, policy.Refused):
            return False
        return self._has_next_start()

    async def _discard(self) -> None:
        """Its content goes, and nothing is made."""
        state = await self._state()
        if state.current is None or not self._owns(state):
            return
        try:
            await self.generations.reset(**self._made_from)
        except (Busy, NotFound) as exc:
            LOG.info("%s is destroyed: %s", self.vid, exc)
            await self.generations.forget()

    async def _make_next(self, what: str) -> None:
        times = self._source_times()
        try:
            current = await self._start_scratch(what, False)
            with self.store.held(self.where.generation(current)) as dataset:
                await devices.wait_for_link(dataset)
        except (ZfsError, OSError, StoragePoolException, policy.Refused):
            if self._owns(await self._state()):
                await self.generations.forget()
            raise
        self._ready = True
        if times != self._source_times():
            # it was not ready yet when the source looked
            await self._discard_if_ready()

    def _source_times(self) -> int:
        return self.source._times_committed if self.source is not None else 0

    def _has_next_start(self) -> bool:
        """Whether what is made now can be what the next start needs."""
        if self.source is not None and self.source.snapshots_disabled:
            # nothing says whether a clone is of its present content
            return False
        return not self._goes_with_its_qube()

    def _goes_with_its_qube(self) -> bool:
        """Whether qubesd removes the qube when it has stopped: a disposable."""
        return bool(getattr(self._owner, "auto_cleanup", False))

    async def _outdate_clones(self) -> None:
        """What is committed here has become another state.

        Clones of an older one that were made ready will not be used, and
        would keep what else is freed.
        """
        self._times_committed += 1
        clones = [each for each in self.pool.clones_of(self) if each._ready]
        await asyncio.gather(*(each._discard_ready() for each in clones))

    @locked
    async def _discard_ready(self) -> None:
        try:
            with channel.together(f"{self.source.vid} of {self.pool.home}"):
                await self._discard_if_ready()
        except ZfsError as exc:
            # its next stop() finds what stays
            LOG.warning("%s: %s", self.vid, exc)

    async def _discard_if_ready(self) -> None:
        if self._ready:
            self._ready = False
            await self.generations.forget()

    def _owns(self, state: State) -> bool:
        """Whether what is on disk is this volume's, to commit or destroy.

        A kept volume under the name of a scratch one, or one that create()
        found in its place, is what a removed qube left.
        """
        if self._not_ours:
            return False
        return state.current is None or bool(self.save_on_stop or state.scratch)

    def _kept_for_forensics(self) -> bool:
        return bool(self.snap_on_start) and (
            self.snap_on_start_forensics or self.pool.forensics
        )
