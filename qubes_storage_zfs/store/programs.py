# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs about one volume, one typed function for each.

Nothing else builds their arguments.  The header of ``zfs/programs/<name>.lua``
says what each does; here is what a caller needs to know.  Those about all
volumes of a container are in pool_programs.py.

Every function that is a coroutine raises ZfsError if ZFS refuses or cannot be
asked.  With a *batch*, the program runs together with those of other tasks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..zfs import channel
from ..zfs.batch import Batch
from . import naming
from .naming import VolumeName
from .pointer import VolumeSpec
from .state import Limits, MadeFrom, StateQuery, VolumeState

#: datasets that a change left, to be looked at for garbage
Unchecked = Sequence[str]

#: what marks a pointer, and a dataset of this driver
OURS: Mapping[str, object] = {"prefix": naming.POINTER, "holder": naming.HOLDER}


def limit_arguments(limits: Limits) -> dict[str, object]:
    """Return *limits* as the programs take them."""
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
    """Return allowed properties, name -> value, as the programs take them."""
    return [
        {"name": name, "value": value} for name, value in properties.items()
    ]


# --- one volume


@dataclass(frozen=True)
class Volume:
    """A volume as the programs that change it take it.

    :ivar pinned: number of a revision that is not pruned
    """

    name: VolumeName
    limits: Limits
    pinned: int | None = None

    @property
    def arguments(self) -> dict[str, object]:
        return _volume(self.name, self.limits, self.pinned)


@dataclass(frozen=True)
class VolumeQuery:
    """A question about a volume in a container.

    :ivar rules: properties that are allowed, name -> value
    """

    container: str
    qubes_root: str
    name: VolumeName
    limits: Limits
    query: StateQuery
    rules: Mapping[str, str]

    @property
    def arguments(self) -> dict[str, object]:
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
    """Ask ZFS about a volume."""
    arguments = query.arguments
    reply = await channel.read("state", query.qubes_root, arguments, batch)
    return VolumeState.from_reply(reply)


def state_now(query: VolumeQuery) -> VolumeState:
    """As state(), for a synchronous property of the API."""
    reply = channel.ask("state", query.qubes_root, query.arguments)
    return VolumeState.from_reply(reply)


@dataclass(frozen=True)
class MoveOptions:
    """How a generation becomes the current one; see make_current.lua.

    :ivar is_disposable: its content is discarded at stop
    :ivar size: what a disposable one was created for
    :ivar keep: old revisions to keep, -1: no revisions; None: prune nothing
    :ivar copied_from: what it is a fresh copy of
    :ivar refuse_unwritten: refuse one that was never written to
    :ivar promote: take over the revisions of the volume's own origin
    """

    is_disposable: bool = False
    size: VolumeSpec | None = None
    keep: int | None = None
    copied_from: str | None = None
    refuse_unwritten: bool = False
    promote: bool = False

    @property
    def arguments(self) -> dict[str, object]:
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
    """Move the pointer of a volume to a generation.

    :param number: of the generation
    :param mark: of this process, see holder.py
    :param created: this process created the qube's dataset a moment ago
    :param origin: a snapshot that is cloned to make it (OpenZFS 2.4)
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
    """Commit what changed, and prune.

    :param keep: old revisions to keep; -1: no revisions at all
    :param unmeasured: it cannot be measured: *limits* decide what is unsure
    :return: None, if it is unsure until thresholds.py has measured
    """
    arguments = {**volume.arguments, "keep": keep, "unmeasured": unmeasured}
    dataset = volume.name.dataset
    reply = await channel.change("commit", dataset, arguments, batch=batch)
    return None if reply.has("unsure") else reply.texts()


async def reset(
    volume: Volume, made_from: MadeFrom, batch: Batch | None = None
) -> None:
    """Roll a disposable volume back to its beginning.

    :param made_from: what would be made now
    """
    arguments = {**volume.arguments, **_made_from(made_from)}
    dataset = volume.name.dataset
    await channel.change("reset", dataset, arguments, batch=batch)


async def take_temporary(
    volume: Volume, made: Callable[[str], object], batch: Batch | None = None
) -> str:
    """Take a passing snapshot of a volume without revisions; its name.

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
    """Drop what take_temporary() made."""
    arguments = {**volume.arguments, "snapshot": snapshot}
    await channel.change(
        "drop_temporary", volume.name.dataset, arguments, batch=batch
    )


@dataclass(frozen=True)
class Removed:
    """What is left of a removed volume.

    :ivar busy: a generation that a process has open
    :ivar unfreed: a generation that is kept and could not be rolled back
    :ivar bookmarks: names of those that must go before the rest can
    :ivar origins: datasets to be looked at for garbage
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
    """Remove a volume: pointer, revisions and generations.

    :param busy: generations that an export uses, which are left alone
    :param only_disposable: leave alone a volume whose content is kept
    :param retry: the pointer was dropped before
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
    """What a blank zvol takes, in bytes."""

    logical: int
    referenced: int


async def measure(dataset: str) -> Measured:
    """Measure a zvol that nothing was written to."""
    reply = await channel.read("measure", dataset, {"dataset": dataset})
    return Measured(
        reply.at("logical").as_number(), reply.at("referenced").as_number()
    )
