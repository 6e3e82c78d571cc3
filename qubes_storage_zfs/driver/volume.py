# SPDX-License-Identifier: BSD-2-Clause
"""A volume of a qube, as qubesd sees it.  Start reading here.

Each operation takes the lock, calls a part of the volume, and logs one line.
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
    """One volume of a qube, stored on zvols.

    A volume has generations, which are zvols, and one pointer, which names the
    current generation.  An operation that replaces the content creates a new
    generation.  Then it moves the pointer, in one transaction group.  If an
    operation is interrupted before, the volume is unchanged, and the new
    generation is garbage.

    On disk, below the qubes root ``Q`` of the pool:

    =========================  ================================================
    ``Q/<qube>``               a filesystem that is never mounted
    ``Q/<qube>/<volume>``      generation 0
    ``Q/<qube>/<volume>.<n>``  generation n, from 1 on: later content, and the
                               devices of exports and imports
    ``...@r<k>``               the committed state (highest k), or a revision
    ``...@s1``                 the baseline snapshot of a disposable volume
    ``...@x<k>``               a temporary snapshot, with revisions_to_keep -1
    =========================  ================================================

    These properties of ``Q/<qube>`` describe the volume:

    ========================================  =================================
    ``qubes-storage-zfs:current.<volume>``    the pointer
    ``qubes-storage-zfs:committed.<volume>``  the snapshot that is the committed
                                              state
    ========================================  =================================

    The attributes ``snap_on_start`` and ``save_on_stop`` decide about the
    content.  A volume with both is refused by create().

    =============  ==================  ==================  ====================
    volume         volatile            private             root of an app qube
    =============  ==================  ==================  ====================
    snap_on_start  no                  no                  yes
    save_on_stop   no                  yes                 no
    -------------  ------------------  ------------------  --------------------
    create()       no change           creates generation  no change
                                       0 and @r1
    start()        resets to @s1, or   no change           resets to @s1, or
                   creates an empty                        clones the committed
                   generation                              state of the source
    stop()         no change           commits @r<k+1> if  no change
                                       modified
    after stop()   prepares the next   no change           prepares the next
                   start, as start()                       start, as start()
    resize()       sets the size of    sets the size, and  in use: grows until
                   new generations     commits if halted   stop(); else refused
    export()       refused             clones the          refused
                                       committed state
    import_data()  refused             creates an empty    refused
                                       generation
    import_volume  no change           clones or copies    no change
                                       the other volume
    revert()       refused             clones a revision   refused
    remove()       destroys all        destroys all        destroys all
    =============  ==================  ==================  ====================

    The volumes of a disposable qube are destroyed by stop(), except those with
    save_on_stop.  With the qube's feature ``zfs.reset-on-start``, each start of
    a private volume commits the content and then resets it to a revision.

    Attributes in qubes.xml that are not core-admin's:

    ``snap_on_start_forensics`` (False)
        whether a clone that start() made is kept after stop(), until the next
        start

    ``revisions_to_keep`` is -1, or the number of revisions besides the
    committed state.  With -1 the volume has no ``@r`` snapshots and no committed state.

    ZfsPool creates the object for a volume of a qube, or for a volume on disk
    that no qube has.  It lasts as long as the qube.  A second object can exist
    for a backup, because qubesd then loads the qubes twice.  Only the thread of
    the event loop uses it.  Operations that change the content run under the
    lock of the volume; exports run without it.

    :ivar qube: name of the qube that has the volume; None if no qube has it
    :ivar app: the application object of that qube; None if no qube has it
    :ivar replaces: the former object of the same volume; None if there is none
    :ivar content: the content on disk
    :ivar lifecycle: the phase of the volume in this process
    :ivar preparation: the preparation of the next start
    :ivar imports: the import in progress
    :ivar exports: the exports in progress
    :ivar session: the operations start, stop and remove
    :ivar changes: the operations that create, replace or resize the content
    :ivar view: the attributes that qubesd reads from the disk
    """

    qube: str | None = None
    app: Application | None = None
    replaces: "ZfsVolume | None" = None

    def __init__(
        self, *, snap_on_start_forensics: bool = False, **config: Any
    ) -> None:
        """Take the attributes as they are in qubes.xml; do not touch the disk.

        :param snap_on_start_forensics: whether a clone is kept after stop()
        :param config: attributes of core-admin, and of newer versions
        """
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
        """Run one operation under the lock of the volume.

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
        """Map errors and log changes of an operation, without the lock."""
        title = f"{self.qube}:{self.name}" if self.qube else None
        return operations.operation(action, self.vid, self.pool.name, title)

    # --- used by the parts, the pool and other volumes; see interface.py

    where = property(lambda self: self.content.where)
    store = property(lambda self: self.content.store)
    generations = property(lambda self: self.content.generations)
    commits = property(lambda self: self.lifecycle.commits)
    is_prepared = property(lambda self: self.lifecycle.is_prepared)

    def is_stopping(self) -> bool:
        """Return whether the domain has ended and stop() has not finished."""
        return self.lifecycle.is_stopping

    def expect_no_stop(self) -> None:
        """Note that stop() did not run in time, so that no operation waits."""
        self.lifecycle.expect_no_stop()

    async def discard_prepared(self) -> None:
        """Destroy prepared content, because the source was committed."""
        await self.preparation.discard_prepared()

    async def exists(self) -> bool:
        """Return whether the volume has a generation on disk."""
        return (await self.content.state()).current is not None

    @contextlib.asynccontextmanager
    async def committed(self, batch: Batch | None = None) -> AsyncIterator[str]:
        """Return the snapshot of the committed state, within a context.

        :param batch: the batch of the operation that clones the snapshot
        :raises StoragePoolException: if there is none and the qube runs
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._reported("read"):
                snapshot = await stack.enter_async_context(
                    self.content.committed(batch)
                )
            yield snapshot

    # --- attributes that qubesd reads and sets; see view.py

    dataset = property(lambda self: self.view.dataset)
    path = property(lambda self: self.view.path)
    usage = property(lambda self: self.view.usage)
    revisions = property(lambda self: self.view.revisions())
    revisions_to_keep = attributes.RevisionsToKeep()

    @property
    def config(self) -> dict[str, object]:
        """The attributes of the volume for qubes.xml."""
        return attributes.for_qubes_xml(
            super().config, self._unknown, self.snap_on_start_forensics
        )

    @property
    def size(self) -> int:
        """The size in bytes, from qubes.xml or the last operation.

        It is not read from ZFS, because qubesd reads it for each volume each
        time it writes qubes.xml.
        """
        if self.source is not None:
            return int(self.lifecycle.session_size or self.source.size)
        return self.content.size

    def is_dirty(self) -> bool:
        """Return whether the content has changes that are not committed."""
        return self.view.is_dirty()

    def is_outdated(self) -> bool:
        """Return whether the source was committed since the qube started."""
        return self.view.is_outdated()

    def is_running(self) -> bool:
        """Return whether a qube uses the volume.

        qubesd records the use in a file, and removes the file when it has
        stopped all volumes of the qube.  This volume is not in use any more
        when its own stop() has finished.
        """
        return not self.lifecycle.phase.is_halted and bool(super().is_running())

    # --- operations

    async def verify(self) -> bool:
        """Check that the next start finds the data that it needs.

        :return: True
        :raises StoragePoolException: if the volume or its source is missing
        """
        with self._reported("use"):
            await self.content.verify()
        return True

    async def create(self) -> "ZfsVolume":
        """Create an empty volume, if its content is saved.

        :raises StoragePoolException: if another volume has the vid
        """
        async with self.operation("create") as operation:
            await self.changes.create(operation)
        return self

    async def remove(self) -> "ZfsVolume":
        """Destroy the volume and all its revisions.

        :raises StoragePoolException: if ZFS refuses
        """
        async with self.operation("remove") as operation:
            await self.session.remove(operation)
        return self

    async def start(self) -> "ZfsVolume":
        """Make the volume ready for its qube, and wait for its device.

        If the qube of the source has just ended, wait until the source is
        committed, and clone that state.

        :raises StoragePoolException: if the volume cannot be started
        """
        await halting.wait_for_stop(self.source)
        async with self.operation("start") as operation:
            await self.session.start(operation)
        return self

    async def stop(self) -> "ZfsVolume":
        """Commit or discard the data that the qube wrote.

        qubesd also calls this when it starts, for each halted qube; before each
        removal; and for volumes that do not exist.

        A failure is only logged.  An exception would keep qubesd from removing
        the other volumes of the qube, and no user would see the message.  No
        data is lost: the next stop() commits it, or the next start() uses it.
        """
        try:
            async with self.operation("stop") as operation:
                await self.session.stop(operation)
        except StoragePoolException as exc:
            LOG.error("%s", exc)
        return self

    async def revert(self, revision: str | None = None) -> "ZfsVolume":
        """Replace the content by a revision.

        The present content becomes a revision itself, if it is modified.

        :param revision: id of a revision; None: the newest revision
        :raises StoragePoolException: if the qube runs, or there is no such
            revision
        """
        await halting.wait_for_stop(self)
        async with self.operation("revert") as operation:
            await self.changes.revert(operation, revision)
        return self

    async def resize(self, size: int) -> "ZfsVolume":
        """Change the size.

        :param size: bytes; rounded up to whole blocks
        :raises StoragePoolException: if the volume cannot have that size now
        """
        await halting.wait_for_stop(self)
        async with self.operation("resize") as operation:
            await self.changes.resize(operation, size)
        return self

    async def export(self) -> str:
        """Create a device with the committed state, for the caller alone.

        :return: path of the device; export_end() destroys it
        :raises StoragePoolException: if it cannot be created
        :raises NotImplementedError: for a disposable volume
        """
        self._must_save("cannot be exported")
        await halting.wait_for_stop(self)
        with self._reported("export") as operation:
            return await self.exports.start(operation)

    async def export_end(self, path: str) -> None:
        """Destroy a device that export() created.

        :param path: path of the device; another path is ignored
        """
        with self._reported("end the export of") as operation:
            await self.exports.finish(operation, path)

    async def import_data(self, size: int) -> str:
        """Create a zeroed device, to which the caller writes the new content.

        :param size: bytes; rounded up to whole blocks
        :return: path of the device
        :raises StoragePoolException: if the qube runs, or another client writes
            to such a device
        :raises NotImplementedError: for a disposable volume
        """
        self._must_save("cannot take an import")
        await halting.wait_for_stop(self)
        async with self.operation("import into") as operation:
            self.lifecycle.must_be_halted()
            return await self.imports.start(operation, size)

    async def import_data_end(self, success: bool) -> "ZfsVolume":
        """Make the device of import_data() the content, or destroy it.

        :param success: whether all data was written
        :raises StoragePoolException: if the content cannot be replaced
        """
        async with self.operation("finish the import into") as operation:
            await self.changes.finish_import(operation, success)
        return self

    async def import_volume(
        self, src_volume: qubes.storage.Volume
    ) -> "ZfsVolume":
        """Replace the content by the committed state of another volume.

        Do nothing unless the content of both volumes is saved.

        :param src_volume: the other volume, of any driver
        :raises StoragePoolException: if a qube uses this volume, or there is
            not enough space
        """
        await halting.wait_for_stop(self, src_volume)
        if src_volume.save_on_stop and self.save_on_stop:
            async with self.operation(f"copy {src_volume.vid} to") as operation:
                await self.changes.import_volume(operation, src_volume)
        return self

    def _must_save(self, reason: str) -> None:
        """Check that the content of the volume is saved.

        :raises NotImplementedError: if it is not
        """
        if not self.save_on_stop:
            raise NotImplementedError(
                f"{self.vid} {reason}, because its content is discarded at stop"
            )
