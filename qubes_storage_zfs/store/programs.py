# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs for one volume: one typed function for each program.

No other module builds their arguments.  The header of
``zfs/programs/<name>.lua`` describes the program and its arguments.  The
programs for all volumes of a container are in pool_programs.py.

Every coroutine here raises ZfsError if ZFS refuses or cannot be asked.  Its
parameter *batch* is the batch that the program joins, see zfs/batch.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..zfs import channel
from ..zfs.batch import Batch
from . import naming
from .naming import VolumeName
from .pointer import VolumeSpec
from .state import Limits, MadeFrom, StateQuery, VolumeState

#: datasets that a change could not destroy, and that may be garbage now
Unchecked = Sequence[str]

#: the properties that programs recognise datasets of this driver by
OURS: Mapping[str, object] = {"prefix": naming.POINTER, "holder": naming.HOLDER}


def limit_arguments(limits: Limits) -> dict[str, object]:
    """Return *limits* as arguments of a program."""
    blank = {} if limits.blank is None else {"blank": limits.blank}
    return {
        "unmodified": limits.unmodified,
        "doubtful": limits.doubtful,
        "largest": limits.largest,
        **blank,
    }


def _volume(
    name: VolumeName, limits: Limits, pinned: int | None = None
) -> dict[str, object]:
    pin = {} if pinned is None else {"pinned": pinned}
    return {
        "qube": name.dataset,
        "volume": name.volume,
        "pointer": name.pointer,
        "committed": name.committed,
        **limit_arguments(limits),
        **pin,
    }


def _made_from(made_from: MadeFrom) -> dict[str, object]:
    arguments: dict[str, object] = {}
    if made_from.size is not None:
        arguments["size"] = str(made_from.size)
    if made_from.source is not None:
        arguments["source"] = {
            "qube": made_from.source.dataset,
            "committed": made_from.source.committed,
        }
    return arguments


def rules(properties: Mapping[str, str]) -> list[dict[str, str]]:
    """Return required properties, name -> value, as an argument."""
    return [
        {"name": name, "value": value} for name, value in properties.items()
    ]


# --- one volume


@dataclass(frozen=True)
class Volume:
    """A volume that a program is to change.

    Generations creates one for each call.

    :ivar pinned: number of a revision that is not pruned; None: there is none
    """

    name: VolumeName
    limits: Limits
    pinned: int | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments that all these programs have."""
        return _volume(self.name, self.limits, self.pinned)


@dataclass(frozen=True)
class VolumeQuery:
    """A query for the state of a volume in a container.

    Container creates one for each call.

    :ivar container: the dataset of the container
    :ivar rules: required properties, name -> value
    """

    container: str
    qubes_root: str
    name: VolumeName
    limits: Limits
    query: StateQuery
    rules: Mapping[str, str]

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of state.lua."""
        query = self.query
        arguments: dict[str, object] = {
            "container": self.container,
            "claim": naming.CLAIM,
            "prefix": naming.PREFIX,
            **_volume(self.name, self.limits),
            "native": list(query.native),
            "revisions": query.revisions,
            "dates": query.dates,
            "counted": query.counted,
            "writable": query.writable,
            **_made_from(query.made_from),
        }
        if query.tuned:
            arguments["tuned"] = naming.TUNED
        if query.checked:
            arguments["rules"] = rules(self.rules)
        return arguments


async def state(query: VolumeQuery, batch: Batch | None = None) -> VolumeState:
    """Return the state of a volume, as ZFS reports it."""
    arguments = query.arguments
    reply = await channel.read("state", query.qubes_root, arguments, batch)
    return VolumeState.from_reply(reply)


def state_now(query: VolumeQuery) -> VolumeState:
    """Return the same as state(), for a synchronous property of the API.

    :raises ZfsError: if ZFS cannot be asked, or does not answer in time
    """
    reply = channel.ask("state", query.qubes_root, query.arguments)
    return VolumeState.from_reply(reply)


@dataclass(frozen=True)
class MoveOptions:
    """Options of make_current(); make_current.lua describes them.

    :ivar is_disposable: the content is discarded at stop
    :ivar size: what a disposable generation was created for
    :ivar keep: revisions to keep; -1: make none; None: do not prune
    :ivar copied_from: the source that the generation is a copy of, for a volume
        that is reset at each start; see Pointer
    :ivar refuse_unwritten: refuse a generation that was never written to
    :ivar promote: promote the generation over its origin, if that is a
        generation of the same volume
    """

    is_disposable: bool = False
    size: VolumeSpec | None = None
    keep: int | None = None
    copied_from: str | None = None
    refuse_unwritten: bool = False
    promote: bool = False

    @property
    def arguments(self) -> dict[str, object]:
        """The options as arguments of make_current.lua."""
        optional = {
            "size": None if self.size is None else str(self.size),
            "keep": self.keep,
            "copied_from": self.copied_from,
        }
        return {
            "disposable": self.is_disposable,
            "refuse_unwritten": self.refuse_unwritten,
            "promote": self.promote,
            **{key: x for key, x in optional.items() if x is not None},
        }


async def make_current(
    volume: Volume,
    number: int,
    how: MoveOptions,
    mark: str,
    created: bool,
    origin: str | None = None,
    batch: Batch | None = None,
) -> Unchecked:
    """Make a generation the current one of its volume: move the pointer.

    :param number: the number of the generation
    :param mark: the holder mark of this process
    :param created: whether this process has just created the qube's dataset
    :param origin: the snapshot to clone as the generation (OpenZFS 2.4); None:
        the generation exists
    """
    arguments = {
        **volume.arguments,
        **how.arguments,
        "number": number,
        "holder": naming.HOLDER,
        "mark": mark,
        "created": created,
    }
    if origin is not None:
        arguments["origin"] = origin
    dataset = volume.name.dataset
    reply = await channel.change(
        "make_current", dataset, arguments, batch=batch
    )
    return reply.texts()


async def commit(
    volume: Volume,
    keep: int,
    unmeasured: bool = False,
    batch: Batch | None = None,
) -> Unchecked | None:
    """Commit the content of a volume, if it is modified, and prune.

    :param keep: revisions to keep; -1: make none
    :param unmeasured: measuring is impossible: ``Limits.unmodified`` decides
    :return: None if thresholds.py must measure first; nothing was changed then
    """
    arguments = {**volume.arguments, "keep": keep, "unmeasured": unmeasured}
    dataset = volume.name.dataset
    reply = await channel.change("commit", dataset, arguments, batch=batch)
    return None if reply.has("unsure") else reply.texts()


async def reset(
    volume: Volume, made_from: MadeFrom, batch: Batch | None = None
) -> None:
    """Roll a disposable volume back to its baseline snapshot.

    :param made_from: what the volume would be made from now
    :raises NotFound: if the volume cannot be reset
    """
    arguments = {**volume.arguments, **_made_from(made_from)}
    dataset = volume.name.dataset
    await channel.change("reset", dataset, arguments, batch=batch)


async def take_temporary(
    volume: Volume, made: Callable[[str], object], batch: Batch | None = None
) -> str:
    """Take a temporary snapshot of a volume; return its name.

    :param made: called with the name even if the caller is cancelled
    """
    arguments, dataset = volume.arguments, volume.name.dataset
    reply = await channel.change(
        "take_temporary",
        dataset,
        arguments,
        lambda reply: made(reply.as_text()),
        batch,
    )
    return reply.as_text()


async def drop_temporary(
    volume: Volume, snapshot: str, batch: Batch | None = None
) -> None:
    """Drop a snapshot that take_temporary() has taken."""
    arguments = {**volume.arguments, "snapshot": snapshot}
    await channel.change(
        "drop_temporary", volume.name.dataset, arguments, batch=batch
    )


@dataclass(frozen=True)
class Removed:
    """The result of remove().

    :ivar busy: a generation that a process has open; None: there is none
    :ivar unfreed: a generation that a clone needs, and that could not be rolled
        back because a process has it open; None: there is none
    :ivar bookmarks: bookmarks that must be destroyed before the rest can be
    :ivar origins: datasets that may be garbage now
    """

    busy: str | None
    unfreed: str | None
    bookmarks: Sequence[str]
    origins: Unchecked


async def remove(
    volume: Volume,
    busy: Iterable[str],
    only_disposable: bool,
    retry: bool,
    batch: Batch | None = None,
) -> Removed:
    """Remove a volume: its pointer, its revisions and its generations.

    :param busy: generations that an export uses; they are left alone
    :param only_disposable: do nothing unless the volume is disposable
    :param retry: whether an earlier call removed the pointer; a volume that
        exists is then a new one, and is left alone
    """
    arguments = {
        **volume.arguments,
        **OURS,
        "busy": {name: True for name in busy},
        "only_disposable": only_disposable,
        "retry": retry,
    }
    dataset = volume.name.dataset
    reply = await channel.change("remove", dataset, arguments, batch=batch)
    return Removed(
        reply.text("busy"),
        reply.text("unfreed"),
        reply.at("bookmarks").texts(),
        reply.at("origins").texts(),
    )


async def discard(dataset: str) -> Unchecked:
    """Destroy a generation that has no pointer."""
    reply = await channel.change("discard", dataset, {"dataset": dataset})
    return reply.texts()


@dataclass(frozen=True)
class Measured:
    """The space that a blank zvol uses.

    :ivar logical: bytes before compression (property ``logicalreferenced``)
    :ivar referenced: bytes on disk (property ``referenced``)
    """

    logical: int
    referenced: int


async def measure(dataset: str) -> Measured:
    """Measure a zvol that nothing was written to."""
    reply = await channel.read("measure", dataset, {"dataset": dataset})
    return Measured(
        reply.at("logical").as_number(), reply.at("referenced").as_number()
    )
