# SPDX-License-Identifier: BSD-2-Clause
"""The operations that create, replace or resize the content of a volume.

Each of them checks, changes the disk, and notes the change for the journal.
session.py has the operations start, stop and remove.
"""

import contextlib

import qubes.storage

from ..store import messages, naming
from ..store.messages import Refused
from ..store.programs import MoveOptions
from ..store.state import StateQuery, VolumeState
from ..zfs import commands
from . import reset, transfer
from .interface import Volume
from .operations import Operation
from .parts import Parts
from .phases import Event


class Changes:
    """The operations that create, replace or resize a volume's content.

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

    # --- creation

    async def create(self, operation: Operation) -> None:
        """Create an empty volume, if its content is saved.

        A volume with this vid to which nothing was ever written is replaced.

        :param operation: notes the number of the generation
        :raises Refused: if a volume with this vid has content
        """
        content, volume = self._content, self._volume
        volume.pool.enlist(volume)
        if volume.snap_on_start and volume.save_on_stop:
            raise Refused(messages.BOTH_KINDS)
        if not volume.save_on_stop:
            # raises BadName now, and not at the first start
            naming.volume_name(volume.pool.qubes_root, volume.vid)
            return
        await content.unlock()
        state = await content.state_to_open(StateQuery(revisions=True))
        if state.current is not None:
            # state.blank needs a measurement of the volume
            await content.store.measure_beside(content.where)
            state = await content.state_to_open(StateQuery(revisions=True))
        if state.blank and not volume.is_running():
            # qubesd was killed after an earlier create(), before it wrote
            # qubes.xml
            await content.generations.remove()
            state = await content.state(StateQuery(counted=True))
        elif state.current is not None:
            # qubesd now calls stop() and remove(), which must not destroy the
            # other volume
            self._lifecycle.fire(Event.FOUND_FOREIGN)
            dataset = content.where.dataset
            raise Refused(messages.VOLUME_EXISTS, dataset=dataset)
        keep = volume.revisions_to_keep
        number = await reset.start_blank(content, state, MoveOptions(keep=keep))
        self._lifecycle.fire(Event.CREATED)
        operation.note(f"created generation {number}")

    # --- replacement

    async def _start_replacement(self, operation: Operation) -> None:
        """Check that the content can be replaced, and load the key.

        :param operation: notes an import that is dropped
        :raises Refused: if the qube runs, or a client writes to an import
        """
        self._lifecycle.must_be_halted()
        await self._content.unlock()
        await self._imports.drop_abandoned(operation)

    async def revert(self, operation: Operation, revision: str | None) -> None:
        """Make a clone of a revision the current generation.

        The present content becomes a revision itself, if it is modified.

        :param operation: notes the revision and the number of the generation
        :param revision: id of the revision; None: the newest revision
        :raises Refused: if there is no such revision
        """
        await self._start_replacement(operation)
        content = self._content
        state = await content.state_to_open(StateQuery(revisions=True))
        content.must_exist(state)
        revision, snapshot = _older_revision(state, revision)
        number = await content.generations.make_clone_current(
            lambda: contextlib.nullcontext(snapshot),
            state,
            MoveOptions(promote=True),
        )
        await content.read_size()
        operation.note(f"revert to {revision} created generation {number}")
        await self._preparation.note_commit()

    async def import_volume(
        self, operation: Operation, source: qubes.storage.Volume
    ) -> None:
        """Replace the content by the committed state of another volume.

        :param operation: notes the vid of the source and the number of the
            generation
        :param source: the other volume, of any driver
        :raises Refused: if the qube runs, or the source cannot be read
        """
        self._lifecycle.must_be_halted()
        if source.snapshots_disabled and source.is_running():
            raise Refused(messages.SNAPSHOTS_DISABLED)
        await self._start_replacement(operation)
        number = await transfer.import_volume(self._content, source)
        operation.note(f"import of {source.vid} created generation {number}")
        await self._preparation.note_commit()

    async def finish_import(self, operation: Operation, success: bool) -> None:
        """Make imported data the content, or drop it; see Imports.finish()."""
        if await self._imports.finish(operation, success):
            await self._preparation.note_commit()

    # --- size

    def _must_be_resizable(self) -> None:
        """Check that the size of the volume can be changed now.

        :raises Refused: if the volume is read-only, or has its source's size
        """
        if not self._volume.rw:
            raise Refused(messages.READ_ONLY)
        source = self._volume.source
        if source is not None and not self._lifecycle.in_use:
            name = f"{source.qube}:{source.name}" if source.qube else source.vid
            raise Refused(messages.SIZE_OF_SOURCE, source=name)

    async def resize(self, operation: Operation, size: int | str) -> None:
        """Change the size of the volume, and commit it if the qube is halted.

        Shrinking destroys the data at the end.  The content before becomes a
        revision, if the volume keeps revisions.  A clone that start() made has
        the size of its source.  While its qube runs, the clone can grow until
        the qube stops.

        :param operation: notes the generation and its size
        :param size: bytes; rounded up to whole blocks
        :raises Refused: if the volume cannot have that size now
        """
        self._must_be_resizable()
        content, volume = self._content, self._volume
        content.rounded(size)
        await content.unlock()
        in_use = self._lifecycle.in_use
        state = await content.state_to_open(
            StateQuery(("volsize", "volblocksize"), revisions=True)
        )
        block = int(state.properties.get("volblocksize", 0))
        size = content.rounded(size, block)
        if not volume.save_on_stop and (state.current is None or not in_use):
            # the next start creates a generation of that size
            content.size = size
            return
        keep = volume.revisions_to_keep
        current = content.must_exist(state)
        old_size = int(state.properties["volsize"])
        if size < old_size and volume.is_running():
            raise Refused(messages.SHRINK_RUNNING)
        halted = volume.save_on_stop and not volume.is_running()
        if size < old_size and halted and keep > 0:
            await content.generations.commit(keep)
        if size != old_size:
            dataset = content.where.generation(current)
            await commands.set_property(dataset, "volsize", str(size))
        operation.note(f"resize set generation {current} to {size} bytes")
        # recorded before the commit, because the size is set even if that fails
        if volume.source is not None:
            self._lifecycle.session_size = size
            return
        content.size = size
        if halted and keep >= 0:
            await content.generations.commit(keep)
            await self._preparation.note_commit()


def _older_revision(
    state: VolumeState, revision: str | None
) -> tuple[str, str]:
    """Return id and snapshot of a revision to revert to.

    The committed state is one of them if a session was not committed, as after
    a power loss while the zpool was absent.

    :param revision: id of the revision; None: the newest revision
    :raises Refused: if there is no such revision, or it is the committed state
        and the volume has no other content
    :raises BadName: if *revision* cannot be an id
    """
    revisions = state.revisions if state.dirty else state.revisions[:-1]
    older = {item.id: item for item in revisions}
    if revision is None:
        if not older:
            raise Refused(messages.NO_REVISIONS)
        revision = list(older)[-1]
    naming.revision_number(str(revision))
    if revision not in older:
        if revision in {item.id for item in state.revisions}:
            raise Refused(messages.REVISION_IS_CURRENT, revision=revision)
        raise Refused(messages.NO_REVISION, revision=revision)
    return revision, older[revision].snapshot
