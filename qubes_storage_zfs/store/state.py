# SPDX-License-Identifier: BSD-2-Clause
"""What ZFS reports of one volume: the question, the answer, its revisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..zfs.reply import Reply
from .naming import VolumeName
from .pointer import VolumeSpec


@dataclass(frozen=True)
class Limits:
    """Which bytes count as written; see thresholds.py.

    :ivar unmodified: the most bytes that count as not written
    :ivar doubtful: what is between this and *largest* is unsure until it was
        measured
    :ivar largest: what *unmodified* may be at most
    :ivar blank: logical bytes of a blank zvol; None: not measured, so nothing
        counts as blank
    """

    unmodified: int
    doubtful: int
    largest: int
    blank: int | None = None


@dataclass(frozen=True)
class Revision:
    """A committed state of a volume.

    :ivar snapshot: its full name
    :ivar creation: seconds since the epoch; 0 if the dates were not asked for
    """

    number: int
    snapshot: str
    creation: int

    @property
    def id(self) -> str:
        return f"r{self.number}"

    @classmethod
    def from_reply(cls, item: Reply) -> "Revision":
        """:raises BadReply: if *item* describes no revision"""
        return cls(
            item.at("number").as_number(),
            item.at("snapshot").as_text(),
            item.number("creation") or 0,
        )


class MadeFrom(NamedTuple):
    """What a disposable volume would be made from now.

    :ivar size: of the volume; None: it is not asked whether that is the same
    :ivar source: the volume that it is cloned from
    """

    size: VolumeSpec | None = None
    source: VolumeName | None = None


@dataclass(frozen=True)
class StateQuery:
    """What to ask about a volume, besides what is always reported.

    :ivar native: native properties of its current generation, which are numbers
    :ivar revisions: what was committed, and what follows from it
    :ivar dates: when that was, instead of what follows
    :ivar counted: the numbers of its generations, if one is to be made
    :ivar tuned: what its qube's features set on the current one
    :ivar writable: what keeps it from being written to
    :ivar made_from: whether a disposable volume can be used again
    :ivar checked: whether its properties are allowed (VolumeState.violation)
    """

    native: Sequence[str] = ()
    revisions: bool = False
    dates: bool = False
    counted: bool = False
    tuned: bool = False
    writable: bool = False
    made_from: MadeFrom = MadeFrom()
    checked: bool = False


NOTHING_MORE = StateQuery()


@dataclass(frozen=True)
class Violation:
    """A property of a dataset with a value that is not allowed.

    Names and values are as they are on the disk.

    :ivar source: the dataset where it is set; "$recvd": it was received
    """

    dataset: str
    property: str
    value: str | None
    source: str | None
    required: str

    @classmethod
    def from_reply(cls, reply: Reply) -> "Violation | None":
        """Return what a program reports as wrong; None if it reports nothing.

        :raises BadReply: if *reply* is neither
        """
        dataset, name = reply.text("dataset"), reply.text("property")
        if dataset is None or name is None:
            return None
        required = reply.at("required").as_text()
        source, value = reply.text("source"), reply.text("value")
        return cls(dataset, name, value, source, required)


@dataclass(frozen=True)
class VolumeState:
    """What ZFS says of one volume at one instant (program state.lua)."""

    #: False if the container itself is missing
    container: bool
    #: not reported with dates
    claimed_by: str | None
    #: whether the qube's dataset exists; and whether ZFS would mount it
    qube: bool
    mountable: bool
    #: of all generations, if asked for and one is to be made
    numbers: Sequence[int]
    #: whether a container without owner was received without its properties
    bare: bool
    #: number of the current generation; None if there is no such volume
    current: int | None
    #: whether the content of the current generation is discarded at stop
    is_disposable: bool = False
    #: whether it can be rolled back to what would be made now
    is_resettable: bool = False
    #: whether it must be; what was written lately may not count yet
    is_modified: bool = False
    #: whether it is a clone of the source's committed state, if there is one
    is_up_to_date: bool | None = None
    #: the snapshot that is the committed state
    committed: str | None = None
    #: oldest first; the last is the committed state
    revisions: Sequence[Revision] = ()
    #: whether it is as create() made it: never written to
    blank: bool = False
    #: whether the current content differs from the committed state; what was
    #: written lately may not count yet
    dirty: bool = False
    #: whether it is dirty only until this process has measured a blank volume
    unsure: bool = False
    #: whether what only an export or clone needed was left by a crash
    is_unfinished: bool = False
    #: what it was reset to when a qube started, and the number of the
    #: revision that is no more than that; with revisions
    copied_from: str | None = None
    copy: int | None = None
    #: what its qube's features set on the current generation, if asked for
    tuned: str | None = None
    #: a property that is not allowed, if asked for; see policy.NotAllowed
    violation: Violation | None = None
    #: the dataset where readonly=on is set, if asked for and it is
    read_only_by: str | None = None
    #: native properties of the current generation, as asked for
    properties: Mapping[str, int] = field(default_factory=dict)
    #: whether it is an earlier answer, because the zpool gives none now
    stale: bool = False

    @classmethod
    def from_reply(cls, reply: Reply) -> "VolumeState":
        """:raises BadReply: if *reply* is not what state.lua returns"""
        up_to_date, revisions = (
            reply.at("up_to_date"),
            reply.at("revisions").items(),
        )
        return cls(
            container=not reply.flag("missing"),
            claimed_by=reply.text("claimed_by"),
            qube=reply.flag("qube"),
            mountable=reply.flag("mountable", default=True),
            numbers=reply.at("numbers").numbers(),
            bare=reply.flag("bare"),
            current=reply.number("current"),
            is_disposable=reply.flag("disposable"),
            is_resettable=reply.flag("resettable"),
            committed=reply.text("committed"),
            is_modified=reply.flag("modified"),
            is_up_to_date=(
                None if up_to_date.is_none() else up_to_date.as_flag()
            ),
            revisions=[Revision.from_reply(item) for item in revisions],
            blank=reply.flag("blank"),
            dirty=reply.flag("dirty"),
            unsure=reply.flag("unsure"),
            is_unfinished=reply.flag("unfinished"),
            copied_from=reply.text("copied_from"),
            copy=reply.number("copy"),
            tuned=reply.text("tuned"),
            violation=Violation.from_reply(reply.at("wrong")),
            read_only_by=reply.text("read_only_by"),
            properties=reply.at("properties").number_by_name(),
        )
