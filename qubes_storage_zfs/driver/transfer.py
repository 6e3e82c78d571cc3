# SPDX-License-Identifier: BSD-2-Clause
"""Data in and out of a volume: export, import, and one volume to another.

A volume has one Exports and one Imports.  Neither looks at the volume's
lifecycle: the volume checks that its qube is halted before, and tells its
lifecycle of a new committed state after.
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
    """The devices with a volume's committed state that clients read from.

    The container knows which datasets are exported, because a volume that
    qubesd builds anew must be able to end an export.
    """

    def __init__(self, content: Content) -> None:
        self._content = content

    async def start(self, operation: Operation) -> str:
        """Make a device with the newest committed state; return its path."""
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
        """Destroy the device at *path*, if it is an export of the volume."""
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
    """The import into a volume that is under way, if there is one.

    The volume creates this object once.  Its methods are called within an
    operation of the volume.  An import lasts from start() to finish(), in two
    calls of a client, which may never make the second.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        #: the generation that the client writes to; None: no import
        self._dataset: str | None = None
        #: it replaced one whose client may still come to end it
        self._replaces = False
        #: the task that began it
        self._task: weakref.ref[asyncio.Task[object]] | None = None

    async def start(self, operation: Operation, size: int) -> str:
        """Make a zeroed device for the new content; return its path.

        :param size: bytes; rounded up to the volume's blocks
        :raises Refused: if a client still writes to another one
        """
        content = self._content
        await content.unlock()
        replaces = self._dataset is not None
        await self.drop_abandoned()
        state = await content.state_to_open(StateQuery(counted=True))
        content.must_exist(state)
        number, self._dataset = await content.make_blank(size, state, True)
        self._replaces = replaces
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None
        try:
            path = await devices.wait_for_link(self._dataset)
        except BaseException:
            await self._drop()
            raise
        operation.note(f"import_data created generation {number}")
        return path

    async def finish(self, success: bool) -> int | None:
        """Make the written device the current generation, or destroy it.

        :return: number of the generation; None if the volume is as before
        :raises Refused: if there is no import, or not the client's
        """
        if self._dataset is None:
            if success:
                raise Refused(messages.NO_IMPORT)
            return None
        # a client that still writes did not send this: it is about another
        # import, which was taken for abandoned
        writers = await devices.persistent_holders(self._dataset)
        if writers and success:
            holders = ", ".join(writers)
            raise Refused(messages.IMPORT_RUNNING, holders=holders)
        if writers:
            return None
        content = self._content
        number = content.where.number_of(self._dataset)
        if not success or number is None:
            await self._drop()
            return None
        if content.volume.is_running():
            await self._drop()
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
        return number

    def _may_finish_another(self) -> bool:
        """Return whether the import that is ended now may be another one.

        A client ends its import with a call of its own, and may come after
        another import has replaced it.  A task that begins and ends an import
        means the same one; core-admin's admin.vm.volume.Clear does so, and
        writes nothing.
        """
        task = self._task() if self._task else None
        return self._replaces and task is not asyncio.current_task()

    async def _drop(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is not None:
            await self._content.store.discard(dataset)

    def release(self) -> None:
        """Leave the device to the operation that removes the volume."""
        if self._dataset is not None:
            self._content.store.unreserve(self._dataset)
        self._dataset = None

    async def drop_abandoned(self) -> None:
        """End an import whose client is gone: it must not block the qube.

        :raises Refused: if a process still writes to it
        """
        if self._dataset is None:
            return
        writers = await devices.persistent_holders(self._dataset)
        if writers:
            holders = ", ".join(writers)
            raise Refused(messages.IMPORT_RUNNING, holders=holders)
        await self._drop()


# --- one volume to another


async def import_volume(content: Content, source: qubes.storage.Volume) -> int:
    """Replace the content of a volume by another volume's committed state.

    Within a zpool that is a clone, also from one Qubes pool to another; else
    the data is copied, without its zeroes.

    :param source: the other volume, of any driver
    :return: number of the generation
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
    """Return whether a clone can replace a copy.

    A clone has the key of its origin for ever, or none if that has none.
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
    """:raises Refused: if the pool has less space than the source's data"""
    other = _content_of(source)
    # another driver's properties may be for the event loop's thread only
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
    """Copy the source's data to a new generation; return its number."""
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
