# SPDX-License-Identifier: BSD-2-Clause
"""How a volume is reset for a start, and set up as the qube's features say.

A disposable volume is reset at each start.  The feature
``zfs.reset-on-start`` names volumes whose content is saved and that start from a
revision, or blank, each time.  Other features set properties of ZFS on a volume.
"""

import contextlib
import logging

from ..store import messages, naming
from ..store.messages import Refused
from ..store.programs import How
from ..store.state import StateQuery, VolumeState
from ..zfs import commands, devices, lzc
from ..zfs.batch import Batch
from ..zfs.errors import Busy, NotFound
from . import features
from .content import Content

LOG = logging.getLogger("qubes.storage.zfs")


async def tune(content: Content, number: int, tuned: str | None) -> int:
    """Set the properties that the qube's features name on a generation.

    :param number: of the generation
    :param tuned: the properties that features set on it, as VolumeState.tuned
    :return: the number
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
    content: Content, state: VolumeState, how: How, batch: Batch | None = None
) -> int:
    """Make an empty generation and the current one of it.

    :param state: of the volume, with the numbers of its generations
    :return: its number
    """
    number, _ = await content.make_blank(content.size, state, False, batch)
    await content.generations.adopt(number, how, batch)
    content.size = content.rounded(content.size)
    return await tune(content, number, None)


def _is_reset(state: VolumeState, revision: str) -> bool:
    """Whether a volume that is reset at each start was, and not written to."""
    newest = state.revisions[-1].number if state.revisions else None
    matches = state.begun_from == revision and state.begun is not None
    return matches and state.begun == newest and not state.dirty


async def start_reset(
    content: Content, revision: str, batch: Batch
) -> tuple[int, bool]:
    """Start from a copy of a revision, or from a blank volume.

    The content that the qube left stays as a revision.

    :param revision: id of the revision, or features.BLANK
    :return: number of the generation, and whether it was made now
    :raises Refused: if there is no such revision
    """
    state = await content.state_to_open(
        StateQuery(revisions=True, tuned=True), batch=batch
    )
    current = content.must_exist(state)
    if _is_reset(state, revision):
        # ZFS may not report yet what was written lately
        async with devices.flushed(content.where.generation(current)):
            await lzc.sync(content.pool.zpool)
        state = await content.state(
            StateQuery(revisions=True, tuned=True), batch=batch
        )
    if _is_reset(state, revision):
        return await tune(content, current, state.tuned), False
    volume = content.volume
    how = How(keep=volume.revisions_to_keep, begun_from=revision)
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
    number = await content.generations.adopt_clone(
        lambda: contextlib.nullcontext(snapshots[revision]),
        state,
        how,
        batch,
    )
    return await tune(content, number, None), True


async def start_disposable(
    content: Content, is_prepared: bool, batch: Batch
) -> int:
    """Start a disposable volume; return the generation's number.

    :param is_prepared: whether the current generation was reset
    """
    volume, source = content.volume, content.volume.source
    # refuses what is no size
    content.rounded(volume.size)
    made_from = content.made_from
    state = await content.state_to_open(
        StateQuery(counted=True, tuned=True, made_from=made_from), batch=batch
    )
    if state.usable and state.current is not None:
        try:
            if not is_prepared or state.touched:
                await content.generations.reset(made_from, batch)
            return await tune(content, state.current, state.tuned)
        except (Busy, NotFound) as exc:
            LOG.info("%s is made again: %s", volume.vid, exc)
            state = await content.state(StateQuery(counted=True), batch=batch)
    how = How(scratch=True, size=made_from.size)
    if source is not None:
        number = await content.generations.adopt_clone(
            lambda: source.committed(batch), state, how, batch
        )
        return await tune(content, number, None)
    return await start_blank(content, state, how, batch)
