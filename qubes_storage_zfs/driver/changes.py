# SPDX-License-Identifier: BSD-2-Clause
"""Changes of a volume that qubesd asks for, but start and stop.

Each checks, changes the disk, and notes for the journal what it did.
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

    The volume creates it once, and calls its methods within an operation.
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
        """Create a blank volume, if its content is saved.

        :raises Refused: if there is another one in its place
        """
        content, volume = self._content, self._volume
        volume.pool.enlist(volume)
        if volume.snap_on_start and volume.save_on_stop:
            raise Refused(messages.BOTH_KINDS)
        if not volume.save_on_stop:
            # for BadName: it is found out before the first start
            naming.volume_name(volume.pool.qubes_root, volume.vid)
            return
        await content.unlock()
        state = await content.state_to_open(StateQuery(revisions=True))
        if state.current is not None:
            # whether nothing was written to it
            await content.store.measure_beside(content.where)
            state = await content.state_to_open(StateQuery(revisions=True))
        if state.blank and not volume.is_running():
            # qubesd was killed after this, before it wrote qubes.xml
            await content.generations.remove()
            state = await content.state(StateQuery(counted=True))
        elif state.current is not None:
            # qubesd now stops and removes what it could not create
            self._lifecycle.fire(Event.FOUND_FOREIGN)
            dataset = content.where.dataset
            raise Refused(messages.VOLUME_EXISTS, dataset=dataset)
        keep = volume.revisions_to_keep
        number = await reset.start_blank(content, state, MoveOptions(keep=keep))
        self._lifecycle.fire(Event.CREATED)
        operation.note(f"created generation {number}")

    # --- other content

    async def _start_replacement(self) -> None:
        """Start a replacement of the content."""
        self._lifecycle.must_be_halted()
        await self._content.unlock()
        await self._imports.drop_abandoned()

    async def revert(self, operation: Operation, revision: str | None) -> None:
        """Make a clone of a revision the current generation.

        The content that is left becomes a revision itself.

        :param revision: its id; None: the newest
        :raises Refused: if there is no such revision
        """
        await self._start_replacement()
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

        :param source: the other volume, of any driver
        """
        self._lifecycle.must_be_halted()
        if source.snapshots_disabled and source.is_running():
            raise Refused(messages.SNAPSHOTS_DISABLED)
        await self._start_replacement()
        number = await transfer.import_volume(self._content, source)
        operation.note(f"import of {source.vid} created generation {number}")
        await self._preparation.note_commit()

    async def finish_import(self, operation: Operation, success: bool) -> None:
        """End an import of data; see Imports.finish()."""
        number = await self._imports.finish(success)
        if number is not None:
            operation.note(f"import_data_end committed generation {number}")
            await self._preparation.note_commit()

    # --- another size

    def _must_be_resizable(self) -> None:
        """:raises Refused: if the volume cannot have a size of its own now"""
        if not self._volume.rw:
            raise Refused(messages.READ_ONLY)
        source = self._volume.source
        if source is not None and not self._lifecycle.in_use:
            name = f"{source.qube}:{source.name}" if source.qube else source.vid
            raise Refused(messages.SIZE_OF_SOURCE, source=name)

    async def resize(self, operation: Operation, size: int | str) -> None:
        """Give the volume another size, and commit that if its qube is halted.

        Shrinking cuts off the end; the committed state from before stays as a
        revision (if the volume keeps any).  A clone made at start has its
        source's size; while its qube runs it can grow, until the qube stops.

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
            # the next start makes one of that size
            content.size = size
            return
        keep = volume.revisions_to_keep
        current = content.must_exist(state)
        before = int(state.properties["volsize"])
        if size < before and volume.is_running():
            raise Refused(messages.SHRINK_RUNNING)
        halted = volume.save_on_stop and not volume.is_running()
        if size < before and halted and keep > 0:
            await content.generations.commit(keep)
        if size != before:
            dataset = content.where.generation(current)
            await commands.set_property(dataset, "volsize", str(size))
        operation.note(f"resize set generation {current} to {size} bytes")
        # it has that size, even if it cannot be committed now
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
    """Return id and snapshot of a revision to go back to.

    :param revision: its id; None: the newest
    :raises Refused: if there is no such revision
    :raises BadName: if the id is not one of a revision
    """
    older = {item.id: item for item in state.revisions[:-1]}
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
