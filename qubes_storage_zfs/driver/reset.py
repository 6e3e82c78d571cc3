# SPDX-License-Identifier: BSD-2-Clause
"""Reset a volume for a start, and apply the qube's features to it.

A disposable volume is reset for each start.  The feature ``zfs.reset-on-start``
names saved volumes that start from a revision, or empty, each time.  Other
features set ZFS properties on a volume.
"""

import contextlib

from ..store import messages, naming
from ..store.messages import Refused
from ..store.programs import MoveOptions
from ..store.state import StateQuery, VolumeState
from ..zfs import commands, devices, lzc
from ..zfs.batch import Batch
from ..zfs.errors import Busy, NotFound
from . import features
from .content import Content
from .operations import Operation


async def tune(content: Content, number: int, tuned: str | None) -> int:
    """Set the ZFS properties that the qube's features name on a generation.

    A property that an earlier feature set is inherited again.

    :param number: number of the generation
    :param tuned: the properties that features have set on it, as in
        VolumeState.tuned
    :return: *number*
    """
    name = content.volume.name
    properties = features.zfs_properties(content.vm, name)
    properties.pop(features.VOLBLOCKSIZE, None)
    text = " ".join(f"{key}={value}" for key, value in properties.items())
    if text == (tuned or ""):
        return number
    dataset = content.where.generation(number)
    for word in (tuned or "").split():
        key = word.partition("=")[0]
        if key in features.EVER_SET and key not in properties:
            await commands.inherit(dataset, key)
    if properties:
        mark = {naming.TUNED: text}
        texts = {key: str(value) for key, value in properties.items()}
        await commands.set_properties(dataset, {**texts, **mark})
    else:
        await commands.inherit(dataset, naming.TUNED)
    return number


async def start_blank(
    content: Content,
    state: VolumeState,
    how: MoveOptions,
    batch: Batch | None = None,
) -> int:
    """Create an empty generation, and make it the current one.

    :param state: state of the volume, with the numbers of its generations
    :return: number of the generation
    """
    number, _ = await content.make_blank(content.size, state, False, batch)
    await content.generations.make_current(number, how, batch)
    content.size = content.rounded(content.size)
    return await tune(content, number, None)


def _is_reset(state: VolumeState, revision: str) -> bool:
    """Return whether a saved volume is reset to *revision* and unmodified."""
    newest = state.revisions[-1].number if state.revisions else None
    matches = state.copied_from == revision and state.copy is not None
    return matches and state.copy == newest and not state.dirty


async def start_reset(
    content: Content, revision: str, batch: Batch
) -> tuple[int, bool]:
    """Reset a saved volume to a clone of a revision, or to an empty volume.

    The content of the last session becomes a revision.  If the volume is reset
    already and unmodified, its current generation is used.

    :param revision: id of the revision, or features.BLANK
    :return: number of the generation, and whether it was created now
    :raises Refused: if there is no such revision
    """
    state = await content.state_to_open(
        StateQuery(revisions=True, tuned=True), batch=batch
    )
    current = content.must_exist(state)
    if _is_reset(state, revision):
        # ZFS reports recent writes only after a sync
        async with devices.flushed(content.where.generation(current)):
            await lzc.sync(content.pool.zpool)
        state = await content.state(
            StateQuery(revisions=True, tuned=True), batch=batch
        )
    if _is_reset(state, revision):
        return await tune(content, current, state.tuned), False
    volume = content.volume
    how = MoveOptions(keep=volume.revisions_to_keep, copied_from=revision)
    if revision == features.BLANK:
        return await start_blank(content, state, how, batch), True
    snapshots = {item.id: item.snapshot for item in state.revisions}
    if revision not in snapshots:
        raise Refused(
            messages.NOTHING_TO_RESET_TO,
            revision=revision,
            qube=volume.qube,
            volume=volume.name,
        )
    number = await content.generations.make_clone_current(
        lambda: contextlib.nullcontext(snapshots[revision]),
        state,
        how,
        batch,
    )
    return await tune(content, number, None), True


async def start_disposable(
    content: Content, is_prepared: bool, batch: Batch, operation: Operation
) -> int:
    """Return the number of a generation for the start of a disposable volume.

    Reset the current generation if it can be used again.  Else create another,
    as a clone of the source or empty.

    :param is_prepared: whether the volume is prepared
    :param operation: notes a generation that could not be reset
    """
    volume, source = content.volume, content.volume.source
    # qubes.xml can have a size that is not valid
    content.rounded(volume.size)
    made_from = content.made_from
    state = await content.state_to_open(
        StateQuery(counted=True, tuned=True, made_from=made_from), batch=batch
    )
    if state.is_resettable and state.current is not None:
        try:
            if not is_prepared or state.is_modified:
                await content.generations.reset(made_from, batch)
            return await tune(content, state.current, state.tuned)
        except (Busy, NotFound) as exc:
            operation.note(f"replaced generation {state.current}: {exc}")
            state = await content.state(StateQuery(counted=True), batch=batch)
    how = MoveOptions(is_disposable=True, size=made_from.size)
    if source is not None:
        number = await content.generations.make_clone_current(
            lambda: source.committed(batch), state, how, batch
        )
        return await tune(content, number, None)
    return await start_blank(content, state, how, batch)
