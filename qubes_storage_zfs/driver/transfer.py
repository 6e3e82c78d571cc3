# SPDX-License-Identifier: BSD-2-Clause
"""Exports and imports of a volume, and copies from one volume to another.

A volume has one Exports and one Imports.  Neither of them uses the lifecycle of
the volume.  The callers check before that the qube is halted, and note the
commit afterwards.
"""

import asyncio
import weakref

import qubes.storage
import qubes.utils

from ..store import messages
from ..store.messages import Refused
from ..store.programs import MoveOptions
from ..store.state import StateQuery, VolumeState
from ..zfs import copy, devices
from ..zfs.errors import Unwritten
from .content import Content
from .operations import Operation


class Exports:
    """The devices with the committed state of a volume that clients read.

    The volume creates it, and it lasts as long as the volume.  An export runs
    without the lock of the volume.

    Container records which datasets are exported.  So a new object for the same
    volume can finish an export, too.
    """

    def __init__(self, content: Content) -> None:
        """Take the content of the volume."""
        self._content = content

    async def start(self, operation: Operation) -> str:
        """Create a device with the committed state.

        :param operation: notes the number of the generation
        :return: path of the device
        :raises Refused: if there is no committed state and the qube runs
        """
        content = self._content
        volume = content.volume
        if volume.snapshots_disabled and volume.is_running():
            raise Refused(messages.SNAPSHOTS_DISABLED)
        await content.unlock()
        state = await content.state_to_open(StateQuery(counted=True))
        number, dataset = await content.generations.clone(
            volume.committed, state, lasting=True
        )
        try:
            path = await devices.wait_for_link(dataset)
        except BaseException:
            await content.store.discard(dataset)
            raise
        content.store.exports.add(dataset)
        operation.note(f"export created generation {number}")
        return path

    async def finish(self, operation: Operation, path: str) -> None:
        """Destroy a device that start() created; ignore any other.

        :param operation: notes the number of the generation
        :param path: path of the device
        """
        content = self._content
        dataset = devices.dataset_of(path)
        if dataset not in content.store.exports:
            return
        number = content.where.number_of(dataset)
        if number is not None:
            await content.store.discard(dataset)
            content.pool.note_use()
            operation.note(f"export_end destroyed generation {number}")


class Imports:
    """The import into a volume that is in progress, if there is one.

    The volume creates it, and it lasts as long as the volume.  Its methods are
    called within an operation of the volume.  An import lasts from start() to
    finish().  A client causes both calls, and may never cause the second.
    """

    def __init__(self, content: Content) -> None:
        """Start without an import."""
        self._content = content
        #: the generation that the client writes to; None: no import
        self._dataset: str | None = None
        #: whether it replaced an import whose client may still call finish()
        self._replaces = False
        #: the task that called start()
        self._task: weakref.ref[asyncio.Task[object]] | None = None

    async def start(self, operation: Operation, size: int) -> str:
        """Create a zeroed device, to which a client writes the new content.

        :param operation: notes the number of the generation
        :param size: bytes; rounded up to whole blocks
        :return: path of the device
        :raises Refused: if a client writes to the device of another import
        """
        content = self._content
        await content.unlock()
        replaces = self._dataset is not None
        await self.drop_abandoned(operation)
        state = await content.state_to_open(StateQuery(counted=True))
        content.must_exist(state)
        number, self._dataset = await content.make_blank(size, state, True)
        self._replaces = replaces
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None
        try:
            path = await devices.wait_for_link(self._dataset)
        except BaseException:
            await self._drop(operation)
            raise
        operation.note(f"import_data created generation {number}")
        return path

    async def finish(self, operation: Operation, success: bool) -> bool:
        """Make the written device the current generation, or destroy it.

        :param operation: notes the number of the generation
        :param success: whether the client wrote all data
        :return: whether the content was replaced
        :raises Refused: if there is no import, or it belongs to another client
        """
        if self._dataset is None:
            if success:
                raise Refused(messages.NO_IMPORT)
            return False
        # a client that still has the device open did not cause this call: the
        # call belongs to an import that was dropped as abandoned
        writers = await devices.persistent_holders(self._dataset)
        if writers and success:
            holders = ", ".join(writers)
            raise Refused(messages.IMPORT_RUNNING, holders=holders)
        if writers:
            return False
        content = self._content
        number = content.where.number_of(self._dataset)
        if not success or number is None:
            await self._drop(operation)
            return False
        if content.volume.is_running():
            await self._drop(operation)
            raise Refused(messages.RUNNING)
        dataset, self._dataset = self._dataset, None
        try:
            async with devices.flushed(dataset):
                pass
        except BaseException:
            await content.store.discard(dataset)
            raise
        try:
            await content.generations.make_current(
                number,
                MoveOptions(
                    keep=content.volume.revisions_to_keep,
                    refuse_unwritten=self._may_finish_another(),
                ),
            )
        except Unwritten as exc:
            raise Refused(messages.IMPORT_REPLACED) from exc
        await content.read_size()
        operation.note(f"import_data_end committed generation {number}")
        return True

    def _may_finish_another(self) -> bool:
        """Return whether this finish() may belong to an earlier import.

        A client can finish its import after another import has replaced it.  If
        the same task calls start() and finish(), both belong to one import.
        core-admin's admin.vm.volume.Clear does so, and writes no data.
        """
        task = self._task() if self._task else None
        return self._replaces and task is not asyncio.current_task()

    async def _drop(self, operation: Operation) -> None:
        """Destroy the device of the import."""
        dataset, self._dataset = self._dataset, None
        if dataset is not None:
            await self._content.store.discard(dataset)
            number = self._content.where.number_of(dataset)
            operation.note(f"dropped the import in generation {number}")

    def release(self) -> None:
        """End the reservation of the device, because the volume is removed."""
        if self._dataset is not None:
            self._content.store.unreserve(self._dataset)
        self._dataset = None

    async def drop_abandoned(self, operation: Operation) -> None:
        """Drop an import whose client has exited, because it blocks the qube.

        :param operation: notes the import that is dropped
        :raises Refused: if a process has the device open
        """
        if self._dataset is None:
            return
        writers = await devices.persistent_holders(self._dataset)
        if writers:
            holders = ", ".join(writers)
            raise Refused(messages.IMPORT_RUNNING, holders=holders)
        await self._drop(operation)


# --- one volume to another


async def import_volume(content: Content, source: qubes.storage.Volume) -> int:
    """Replace the content of a volume by another volume's committed state.

    Clone it within a zpool, also from one pool to another.  Otherwise copy the
    data, without zeroes.

    :param source: the other volume, of any driver
    :return: number of the new generation
    """
    state = await content.state_to_open(StateQuery(counted=True))
    content.must_exist(state)
    if await is_clonable(content, source):
        number = await content.generations.make_clone_current(
            source.committed,
            state,
            MoveOptions(keep=content.volume.revisions_to_keep),
        )
    else:
        number = await _copy(content, source, state)
    await content.read_size()
    return number


def _content_of(source: qubes.storage.Volume) -> Content | None:
    """Return the content of a volume; None if it is another driver's."""
    content = getattr(source, "content", None)
    return content if isinstance(content, Content) else None


async def is_clonable(content: Content, source: qubes.storage.Volume) -> bool:
    """Return whether the volume can be a clone of *source*.

    A clone always has the encryption key of its origin, or none.
    """
    other = _content_of(source)
    if other is None:
        return False
    if other.store is content.store:
        return True
    return (
        other.pool.zpool == content.pool.zpool
        and await other.pool.encryption_root()
        == await content.pool.encryption_root()
    )


async def _must_fit(content: Content, source: qubes.storage.Volume) -> None:
    """Check that the pool has space for the data of *source*.

    :raises Refused: if it has less
    """
    other = _content_of(source)
    # other drivers may require the thread of the event loop for properties
    needed = await other.data_bytes() if other else int(source.usage)
    free = await content.pool.space.available()
    if free is not None and needed > free:
        raise Refused(
            messages.NO_SPACE_FOR_COPY,
            source=source.vid,
            needed=needed,
            free=free,
            pool=content.pool,
        )


async def _copy(
    content: Content, source: qubes.storage.Volume, state: VolumeState
) -> int:
    """Copy the data of *source* to a new generation, and make it current.

    :return: number of the generation
    """
    await _must_fit(content, source)
    path = await qubes.utils.coro_maybe(source.export())
    try:
        number, dataset = await content.make_blank(source.size, state, True)
        try:
            target = await devices.wait_for_link(dataset)
            await copy.sparse_copy(path, target)
        except BaseException:
            await content.store.discard(dataset)
            raise
        keep = content.volume.revisions_to_keep
        await content.generations.make_current(number, MoveOptions(keep=keep))
        return number
    finally:
        await qubes.utils.coro_maybe(source.export_end(path))
