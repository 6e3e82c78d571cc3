# SPDX-License-Identifier: BSD-2-Clause
"""A volume of a qube, as qubesd sees it: start reading here.

Each operation is a guard, a call of a part, and its line in the journal.
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import qubes.storage
from qubes.storage import StoragePoolException

from ..zfs.batch import Batch
from . import attributes, changes, halting, operations, transfer
from .admin import Application
from .content import Content
from .lifecycle import Lifecycle
from .operations import Operation
from .parts import Parts
from .preparation import Preparation
from .session import Session
from .view import VolumeView

LOG = logging.getLogger("qubes.storage.zfs")


class ZfsVolume(qubes.storage.Volume):  # type: ignore[misc]
    """One volume of a qube, on zvols.

    A volume is a set of generations (zvols) and one pointer.  An operation that
    replaces the content builds a new generation and then moves the pointer, in
    one transaction group.  An operation that is cut off leaves the volume as it
    was, and a dataset that is garbage.

    On disk, with the qubes root ``C/vm`` (``C`` in an encrypted pool):

    ============================  =============================================
    ``C/vm/<qube>``               a filesystem, never mounted; its property
                                  ``qubes-storage-zfs:current.<volume>`` is the
                                  pointer
    ``C/vm/<qube>/<volume>``      generation 0
    ``C/vm/<qube>/<volume>.<n>``  generation n; exports and imports, too
    ``...@r<k>``                  committed state k: the newest is *the*
                                  committed state, older ones are the revisions
    ``...@s1``                    a disposable volume as it was made
    ============================  =============================================

    The operations, by ``snap_on_start`` and ``save_on_stop`` (both is refused):

    ============  ===================  ==================  ====================
    operation     neither (volatile)   save (private)      snap (AppVM's root)
    ============  ===================  ==================  ====================
    create()      nothing              zvol and @r1        nothing
    start()       reset to @s1, or     nothing             reset to @s1, or
                  new if there is                          clone if the source
                  none                                     was committed
    stop()        nothing              commit @r<k+1> if   nothing
                                       written to
    after stop()  as start()           nothing             as start()
    export()      refused              clone of the        refused
                                       committed state
    import, copy  refused, nothing     new generation      refused, nothing
    revert()      refused              clone of revision   refused
    remove()      all is destroyed     all is destroyed    all is destroyed
    ============  ===================  ==================  ====================

    Attributes in qubes.xml besides core-admin's: ``snap_on_start_forensics``
    (default False; keep the clone made at start until the next start).  With
    ``revisions_to_keep`` -1 there is no committed state.

    qubesd creates it through ZfsPool.init_volume(), also for a second set of
    qubes when a backup is made.  Operations hold the lock of the volume.

    :ivar qube: name of the qube that has it; None if the volume is only known
        from the disk
    :ivar app: its application object; None likewise
    :ivar replaces: the object that qubesd had for this volume before
    :ivar content: the volume on disk
    :ivar lifecycle: what this process knows of its use
    """

    qube: str | None = None
    app: Application | None = None
    replaces: "ZfsVolume | None" = None

    def __init__(
        self, *, snap_on_start_forensics: bool = False, **config: Any
    ) -> None:
        base, self._unknown = attributes.split(config)
        self.snap_on_start_forensics = snap_on_start_forensics
        super().__init__(**base)
        self.content = Content(self, attributes.parse_size(base.get("size", 0)))
        self.lifecycle = Lifecycle(self.content)
        self.preparation = Preparation(self.content, self.lifecycle)
        self.imports = transfer.Imports(self.content)
        self.exports = transfer.Exports(self.content)
        parts = Parts(
            self.content, self.lifecycle, self.preparation, self.imports
        )
        self.session = Session(parts)
        self.changes = changes.Changes(parts)
        self.view = VolumeView(self.content, self.lifecycle)

    @contextlib.asynccontextmanager
    async def operation(self, action: str) -> AsyncIterator[Operation]:
        """Run one operation; no other one of the volume runs then.

        :param action: for the message if it fails: "Cannot <action> <vid> ..."
        """
        async with self._lock:
            self.view.expire()
            try:
                if self.replaces is not None:
                    await self.replaces.preparation.wait_until_idle()
                with self._reported(action) as current:
                    yield current
            finally:
                self.view.expire()

    def _reported(
        self, action: str
    ) -> contextlib.AbstractContextManager[Operation]:
        title = f"{self.qube}:{self.name}" if self.qube else None
        return operations.operation(action, self.vid, self.pool.name, title)

    # --- for its parts, its pool and other volumes; see interface.py

    where = property(lambda self: self.content.where)
    store = property(lambda self: self.content.store)
    generations = property(lambda self: self.content.generations)
    commits = property(lambda self: self.lifecycle.commits)
    is_prepared = property(lambda self: self.lifecycle.is_prepared)

    def is_stopping(self) -> bool:
        return self.lifecycle.is_stopping

    def expect_no_stop(self) -> None:
        self.lifecycle.expect_no_stop()

    async def discard_prepared(self) -> None:
        await self.preparation.discard_prepared()

    async def exists(self) -> bool:
        return (await self.content.state()).current is not None

    @contextlib.asynccontextmanager
    async def committed(self, batch: Batch | None = None) -> AsyncIterator[str]:
        """Return the snapshot that is the newest committed state.

        :raises StoragePoolException: if there is none while the qube runs
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._reported("read"):
                snapshot = await stack.enter_async_context(
                    self.content.committed(batch)
                )
            yield snapshot

    # --- what qubesd reads and sets; see view.py

    dataset = property(lambda self: self.view.dataset)
    path = property(lambda self: self.view.path)
    usage = property(lambda self: self.view.usage)
    revisions = property(lambda self: self.view.revisions())
    revisions_to_keep = attributes.RevisionsToKeep()

    @property
    def config(self) -> dict[str, object]:
        return attributes.for_qubes_xml(
            super().config, self._unknown, self.snap_on_start_forensics
        )

    @property
    def size(self) -> int:
        """Bytes, as the operations of this process made it; ZFS is not asked:
        qubesd reads it for every volume each time it writes qubes.xml."""
        if self.source is not None:
            return int(self.lifecycle.session_size or self.source.size)
        return self.content.size

    def is_dirty(self) -> bool:
        return self.view.is_dirty()

    def is_outdated(self) -> bool:
        return self.view.is_outdated()

    def is_running(self) -> bool:
        """Return whether a qube uses the volume.

        qubesd notes it in a file, which it removes when all volumes of the
        qube have been stopped; this one is not in use any more when its own
        stop() has ended.
        """
        return not self.lifecycle.phase.is_halted and bool(super().is_running())

    # --- operations

    async def verify(self) -> bool:
        with self._reported("use"):
            await self.content.verify()
        return True

    async def create(self) -> "ZfsVolume":
        async with self.operation("create") as operation:
            await self.changes.create(operation)
        return self

    async def remove(self) -> "ZfsVolume":
        async with self.operation("remove") as operation:
            await self.session.remove(operation)
        return self

    async def start(self) -> "ZfsVolume":
        """Give the volume to its qube.

        A source whose qube has just ended is committed first, so that the
        clone is of its newest state.
        """
        await halting.wait_for_stop(self.source)
        async with self.operation("start") as operation:
            await self.session.start(operation)
        return self

    async def stop(self) -> "ZfsVolume":
        """Commit or discard; called for every halted qube at qubesd's start,
        for volumes that never were and before every removal.

        It does not raise: an exception here would keep qubesd from removing any
        volume of the qube, and no user would see it.  Nothing is lost by it:
        what was not committed stays, and the next stop() or start() continues.
        """
        try:
            async with self.operation("stop") as operation:
                await self.session.stop(operation)
        except StoragePoolException as exc:
            LOG.error("%s", exc)
        return self

    async def revert(self, revision: str | None = None) -> "ZfsVolume":
        """:param revision: an id from :py:attr:`revisions`; None: the newest"""
        await halting.wait_for_stop(self)
        async with self.operation("revert") as operation:
            await self.changes.revert(operation, revision)
        return self

    async def resize(self, size: int) -> "ZfsVolume":
        """:param size: bytes; rounded up to whole blocks"""
        await halting.wait_for_stop(self)
        async with self.operation("resize") as operation:
            await self.changes.resize(operation, size)
        return self

    async def export(self) -> str:
        """Return a device with the newest committed state; the caller's own."""
        self._must_save("keeps nothing that could be exported")
        await halting.wait_for_stop(self)
        with self._reported("export") as operation:
            return await self.exports.start(operation)

    async def export_end(self, path: str) -> None:
        with self._reported("end the export of") as operation:
            await self.exports.finish(operation, path)

    async def import_data(self, size: int) -> str:
        """Return a zeroed device for the new content.

        :param size: bytes; rounded up to whole blocks
        """
        self._must_save("keeps nothing, so nothing can be imported")
        await halting.wait_for_stop(self)
        async with self.operation("import into") as operation:
            self.lifecycle.must_be_halted()
            return await self.imports.start(operation, size)

    async def import_data_end(self, success: bool) -> "ZfsVolume":
        async with self.operation("finish the import into") as operation:
            await self.changes.finish_import(operation, success)
        return self

    async def import_volume(
        self, src_volume: qubes.storage.Volume
    ) -> "ZfsVolume":
        """Take over the newest committed state of another volume."""
        await halting.wait_for_stop(self, src_volume)
        if src_volume.save_on_stop and self.save_on_stop:
            async with self.operation(f"copy {src_volume.vid} to") as operation:
                await self.changes.import_volume(operation, src_volume)
        return self

    def _must_save(self, reason: str) -> None:
        """:raises NotImplementedError: for a disposable volume"""
        if not self.save_on_stop:
            raise NotImplementedError(f"{self.vid} {reason}")
