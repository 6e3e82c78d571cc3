# SPDX-License-Identifier: BSD-2-Clause
"""Prepare the next start of a disposable volume, between a stop and a start.

After stop() the volume is rolled back to its baseline snapshot, or replaced.
So the next start does not wait for a rollback, a clone or a device node.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from qubes.storage import StoragePoolException

from ..store import policy
from ..zfs import devices
from ..zfs.batch import Batch, ended, join
from ..zfs.errors import Busy, Failure, Locked, NotFound, ZfsError
from . import admin, halting, reset
from .content import Content
from .interface import Volume
from .lifecycle import Lifecycle
from .operations import Operation
from .phases import Event, Phase

LOG = logging.getLogger("qubes.storage.zfs")


class Preparation:
    """The preparation of a volume for its next start.

    The volume creates it, and it lasts as long as the volume.  Only the thread
    of the event loop uses it.  A preparation runs in a task of its own, as an
    operation of the volume.  So a start either comes before it or waits for it.
    """

    def __init__(self, content: Content, lifecycle: Lifecycle) -> None:
        """Start without a task."""
        self._content = content
        self._volume: Volume = content.volume
        self._lifecycle = lifecycle
        self._task: asyncio.Task[None] | None = None

    # --- conditions

    @property
    def batch_key(self) -> str:
        """The key of the batch that the volumes of a qube in a pool share.

        It does not depend on the names on disk, which can be opaque.
        """
        volume = self._volume
        return f"{volume.pool.qubes_root} {volume.qube or volume.vid}"

    def commits_of_source(self) -> int:
        """Return the number of commits of the source; 0 without a source."""
        source = self._volume.source
        return source.commits if source is not None else 0

    def has_next_start(self) -> bool:
        """Return whether the next start can use a volume prepared now."""
        source = self._volume.source
        if source is not None and source.snapshots_disabled:
            # no snapshot shows whether a clone has the source's present content
            return False
        return not self._has_disposable_qube()

    def _has_disposable_qube(self) -> bool:
        """Return whether qubesd removes the qube when it has stopped."""
        return bool(getattr(self._content.vm, "auto_cleanup", False))

    def is_kept_for_forensics(self) -> bool:
        """Return whether the clone is kept after stop()."""
        volume = self._volume
        return bool(volume.snap_on_start) and (
            volume.snap_on_start_forensics or volume.pool.forensics
        )

    # --- preparing

    def request(self) -> None:
        """Prepare the next start in a task, if the volume is disposable.

        The task waits until the operations of the qube in progress have
        finished.  No operation waits for it.  An operation that comes first
        finds the volume unchanged.
        """
        saves = self._volume.save_on_stop or self.is_kept_for_forensics()
        if not saves and self._is_halted() and self.has_next_start():
            self._lifecycle.fire(Event.PREPARE)
            self.run_later()

    def _is_halted(self) -> bool:
        """Return whether no qube uses the volume, and it is not removed."""
        gone = self._lifecycle.phase in (Phase.FOREIGN, Phase.REMOVED)
        return not gone and not self._lifecycle.in_use

    def follow_source(self) -> None:
        """Prepare the next start in a task, because the source has changed.

        The content that was prepared from the former source is destroyed.
        """
        if not self.is_kept_for_forensics():
            self._task = asyncio.create_task(
                self._follow_source(), name=f"prepare {self._volume.vid}"
            )

    async def _follow_source(self) -> None:
        """Wait until the volume is halted, and prepare it."""
        await halting.wait_for_stop(self._volume)
        if self._is_halted():
            self._lifecycle.fire(Event.PREPARE)
            await self._run()

    async def wait_until_idle(self) -> None:
        """Wait until no preparation runs."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def run_later(self) -> None:
        """Start the task that prepares the next start."""
        # the event loop has only a weak reference to the task
        self._task = asyncio.create_task(
            self._run(), name=f"prepare {self._volume.vid}"
        )

    async def _run(self) -> None:
        """Prepare the next start after the batch of the qube's operations.

        A failure is only logged, because the next start creates the content.
        """
        await ended(self.batch_key)
        with join(f"next start of {self.batch_key}") as batch:
            try:
                async with self._volume.operation("prepare") as operation:
                    await self._prepare_now(operation, batch)
            except StoragePoolException as exc:
                LOG.warning("%s", exc)

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Fire PREPARING, and DISCARDED at the end unless it succeeded."""
        self._lifecycle.fire(Event.PREPARING)
        try:
            yield
        finally:
            if self._lifecycle.phase is Phase.PREPARING:
                self._lifecycle.fire(Event.DISCARDED)

    async def _prepare_now(self, operation: Operation, batch: Batch) -> None:
        """Prepare the volume, or discard content that cannot be prepared."""
        if self._lifecycle.phase is not Phase.TO_PREPARE:
            return
        successor = self._successor()
        with self._attempt():
            await self._volume.pool.first_use()
            if successor is not None:
                await self._discard_for(successor, batch)
            elif await self._can_be_prepared(batch):
                await self._make_next(operation, batch)
            else:
                await self._discard(operation, batch)

    def _successor(self) -> admin.Volume | None:
        """Return the volume that the qube has instead of this one, or None.

        qubesd creates it when the qube gets another template.
        """
        volumes = getattr(self._content.vm, "volumes", None) or {}
        other = volumes.get(self._volume.name)
        return None if other is self._volume else other

    async def _discard_for(self, successor: admin.Volume, batch: Batch) -> None:
        """Destroy the content, unless it is on disk under the same vid."""
        key = successor.pool.name, successor.vid
        if key != (self._volume.pool.name, self._volume.vid):
            await self._content.generations.remove(True, batch)

    async def _can_be_prepared(self, batch: Batch) -> bool:
        """Return whether the next start can be prepared now.

        It cannot if the key is not loaded, because the user is not asked for
        the passphrase here; or if a property has a value that is not allowed.
        """
        try:
            await self._volume.pool.must_be_allowed()
            await self._volume.pool.must_be_unlocked(batch)
        except (Locked, policy.Refused):
            return False
        return self.has_next_start()

    async def _discard(self, operation: Operation, batch: Batch) -> None:
        """Discard the content of a volume that cannot be prepared."""
        content = self._content
        state = await content.state(batch=batch)
        if state.current is None or not self._lifecycle.owns(state):
            return
        try:
            await content.generations.reset(content.made_from, batch)
            operation.note(f"reset generation {state.current}")
        except (Busy, NotFound) as exc:
            await content.generations.remove(batch=batch)
            operation.note(f"destroyed generation {state.current}: {exc}")

    async def _make_next(self, operation: Operation, batch: Batch) -> None:
        """Reset or create the content, and wait for its device.

        If that fails, destroy the content, so that no old data is left.
        """
        content, commits = self._content, self.commits_of_source()
        try:
            current = await reset.start_disposable(
                content, False, batch, operation
            )
            dataset = content.where.generation(current)
            with content.store.reserve(dataset):
                await devices.wait_for_link(dataset)
        except (ZfsError, OSError, StoragePoolException, Failure):
            if self._lifecycle.owns(await content.state(batch=batch)):
                await content.generations.remove(batch=batch)
            raise
        self._lifecycle.fire(Event.PREPARED)
        operation.note(f"prepared generation {current}")
        if commits != self.commits_of_source():
            # the commit of the source did not find this volume prepared
            await self._discard_if_prepared(operation, batch)

    # --- a source and its clones

    async def note_commit(self) -> None:
        """Count a commit, and destroy prepared clones of earlier states.

        The next start would not use these clones.  They would keep blocks
        allocated that the volume no longer has.
        """
        self._lifecycle.commits += 1
        clones = self._volume.pool.clones_of(self._volume.vid)
        prepared = [clone for clone in clones if clone.is_prepared]
        await asyncio.gather(*(clone.discard_prepared() for clone in prepared))

    async def discard_prepared(self) -> None:
        """Destroy prepared content, because the source was committed."""
        source = self._volume.source
        if source is None:
            return
        key = f"{source.vid} of {self._volume.pool.qubes_root}"
        async with self._volume.operation("prepare") as operation:
            try:
                with join(key) as batch:
                    await self._discard_if_prepared(operation, batch)
            except ZfsError as exc:
                # the next stop() destroys the rest
                LOG.warning("%s: %s", self._volume.vid, exc)

    async def _discard_if_prepared(
        self, operation: Operation, batch: Batch
    ) -> None:
        """Destroy the content if the volume is prepared."""
        if self._lifecycle.phase is Phase.PREPARED:
            self._lifecycle.fire(Event.DISCARDED)
            await self._content.generations.remove(batch=batch)
            operation.note(
                "destroyed the prepared content: the source was committed"
            )
