# SPDX-License-Identifier: BSD-2-Clause
"""A session: a volume from its start to its stop, and its removal."""

import enum

from ..store.state import StateQuery, VolumeState
from ..zfs import commands, devices, lzc
from ..zfs.batch import Batch, join
from . import reset
from .interface import Volume
from .operations import Operation
from .parts import Parts
from .phases import Event, Phase


class _Outcome(enum.Enum):
    """The result of a stop."""

    NOTHING = "nothing to do"
    COMMITTED = "committed"
    DESTROYED = "destroyed"
    #: nothing was written, so the volume is prepared
    UNMODIFIED = "unmodified"
    TO_PREPARE = "to prepare"


class Session:
    """The operations start, stop and remove of one volume.

    The volume creates it, and it lasts as long as the volume.  Its methods are
    called within an operation of the volume.
    """

    def __init__(self, parts: Parts) -> None:
        """Take the parts of the volume."""
        self._content = parts.content
        self._volume: Volume = parts.content.volume
        self._lifecycle = parts.lifecycle
        self._preparation = parts.preparation
        self._imports = parts.imports

    # --- start

    async def start(self, operation: Operation) -> None:
        """Choose the generation that the qube uses, and wait for its device.

        :param operation: notes the number of the generation
        """
        lifecycle, pool = self._lifecycle, self._volume.pool
        is_prepared = lifecycle.phase is Phase.PREPARED
        lifecycle.fire(Event.START)
        pool.enlist(self._volume)
        lifecycle.session_size = None
        with join(self._preparation.batch_key) as batch:
            await pool.first_use()
            await pool.must_be_allowed()
            await pool.must_be_unlocked(batch)
            await self._imports.drop_abandoned(operation)
            if self._volume.save_on_stop:
                current = await self._start_saved(batch)
            else:
                current = await reset.start_disposable(
                    self._content, is_prepared, batch, operation
                )
        lifecycle.started(current)
        dataset = self._content.where.generation(current)
        path = await devices.wait_for_link(dataset)
        if self._volume.save_on_stop:
            await self._update_size(path, dataset)
        operation.note(f"start returned generation {current}")

    async def _update_size(self, path: str, dataset: str) -> None:
        """Read the size of a saved volume from its device.

        A volume that was reset to a smaller revision gets its size back.

        :param path: the device of the current generation
        :param dataset: the current generation
        """
        content = self._content
        size = await lzc.in_thread(dataset, devices.size_of, path)
        if content.reset_to is not None and size < content.size:
            await commands.set_property(dataset, "volsize", str(content.size))
        else:
            content.size = size

    async def _start_saved(self, batch: Batch) -> int:
        """Return the number of the generation that a saved volume uses.

        If the volume is reset at each start, it is reset here.
        """
        content = self._content
        revision = content.reset_to
        if revision is not None:
            number, is_new = await reset.start_reset(content, revision, batch)
            if is_new:
                await self._preparation.note_commit()
            return number
        state = await content.state_to_open(StateQuery(tuned=True), batch=batch)
        current = content.must_exist(state)
        return await reset.tune(content, current, state.tuned)

    # --- stop

    async def stop(self, operation: Operation) -> None:
        """Commit or discard the data that the qube wrote.

        A disposable volume is reset afterwards, in the preparation of the next
        start.  stop() does not wait for it.

        :param operation: notes the number of the generation
        """
        lifecycle = self._lifecycle
        lifecycle.fire(Event.STOP)
        lifecycle.session_size = None
        with join(self._preparation.batch_key) as batch:
            outcome, number = await self._commit_or_discard(batch)
        lifecycle.fire(Event.STOPPED)
        if outcome is _Outcome.UNMODIFIED:
            lifecycle.fire(Event.PREPARED)
        elif outcome is _Outcome.TO_PREPARE:
            lifecycle.fire(Event.PREPARE)
            self._preparation.run_later()
        elif outcome is _Outcome.DESTROYED:
            operation.note(f"stop destroyed generation {number}")
        elif outcome is _Outcome.COMMITTED:
            operation.note(f"stop committed generation {number}")
            if self._volume.revisions_to_keep >= 0:
                await self._preparation.note_commit()

    async def _commit_or_discard(
        self, batch: Batch
    ) -> tuple[_Outcome, int | None]:
        """Return the result, and the number of the current generation.

        If start() returned a generation in this process, the volume is
        committed or prepared without reading its state first.
        """
        content, volume = self._content, self._volume
        preparation = self._preparation
        await volume.pool.first_use()
        commits = preparation.commits_of_source()
        current, is_needed = self._lifecycle.generation, True
        if current is None:
            state = await content.generations.state(
                StateQuery(
                    revisions=volume.save_on_stop, made_from=content.made_from
                ),
                batch=batch,
            )
            if (
                state.claimed_by != volume.pool.name
                or not self._lifecycle.owns(state)
            ):
                return _Outcome.NOTHING, None
            if state.unsure and await content.store.measure_beside(
                content.where
            ):
                state = await content.generations.state(
                    StateQuery(revisions=True), batch=batch
                )
            current = state.current
            # ZFS may not report recent writes yet, so a recorded use counts
            is_needed = volume.is_running() or self._is_unfinished(state)
        if current is None:
            return _Outcome.NOTHING, None
        if volume.save_on_stop:
            if not is_needed:
                return _Outcome.NOTHING, current
            await self._commit(current, batch)
            return _Outcome.COMMITTED, current
        if preparation.is_kept_for_forensics():
            return _Outcome.NOTHING, current
        if not preparation.has_next_start():
            await content.generations.remove(batch=batch)
            return _Outcome.DESTROYED, current
        # a commit of the source may have missed that this volume is prepared
        if not is_needed and commits == preparation.commits_of_source():
            return _Outcome.UNMODIFIED, current
        return _Outcome.TO_PREPARE, current

    def _is_unfinished(self, state: VolumeState) -> bool:
        """Return whether ZFS reports a change that a stop() must handle."""
        if not self._volume.save_on_stop:
            return state.is_modified or not state.is_resettable
        keep = self._volume.revisions_to_keep
        pinned = self._content.generations.pinned
        older = [x for x in state.revisions[:-1] if x.number != pinned]
        surplus = len(older) > keep
        return state.is_unfinished or surplus or (keep >= 0 and state.dirty)

    async def _commit(self, current: int, batch: Batch) -> None:
        """Commit a generation after flushing its device.

        With revisions_to_keep -1 only snapshots are removed, and no flush is
        needed.
        """
        content, keep = self._content, self._volume.revisions_to_keep
        if keep < 0:
            await content.generations.commit(keep, batch)
            return
        async with devices.flushed(content.where.generation(current)):
            await content.generations.commit(keep, batch)

    # --- creation and removal

    async def remove(self, operation: Operation) -> None:
        """Destroy the volume and all its revisions."""
        with join(self._preparation.batch_key) as batch:
            await self._volume.pool.first_use()
            self._imports.release()
            state = await self._content.state(batch=batch)
            is_own = self._lifecycle.owns(state)
            self._lifecycle.fire(Event.REMOVE)
            if state.qube and is_own:
                await self._content.generations.remove(batch=batch)
                operation.note("remove destroyed all generations")
        await self._preparation.note_commit()
        self._volume.pool.unlist(self._volume.vid)
