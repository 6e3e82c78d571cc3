# SPDX-License-Identifier: BSD-2-Clause
"""The state of a volume: the query, the answer of ZFS, and its revisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..zfs.reply import Reply
from .naming import VolumeName
from .pointer import VolumeSpec


@dataclass(frozen=True)
class Limits:
    """The numbers of written bytes that decide if a volume is modified.

    thresholds.py creates them and explains them.  All are bytes.

    :ivar unmodified: up to this many, a volume is not modified
    :ivar doubtful: between this and *largest*, thresholds.py must measure first
    :ivar largest: the largest possible value of *unmodified*
    :ivar blank: logical bytes of a blank zvol; None: not measured, so no zvol
        counts as blank
    """

    unmodified: int
    doubtful: int
    largest: int
    blank: int | None = None


@dataclass(frozen=True)
class Revision:
    """A committed state of a volume.

    :ivar number: its number; a later revision has a higher one
    :ivar snapshot: the full name of its snapshot
    :ivar creation: seconds since the epoch; 0 if the query has no ``dates``
    """

    number: int
    snapshot: str
    creation: int

    @property
    def id(self) -> str:
        """The id of the revision in qubesd."""
        return f"r{self.number}"

    @classmethod
    def from_reply(cls, item: Reply) -> "Revision":
        """Return the revision that a program describes.

        :raises BadReply: if *item* describes none
        """
        return cls(
            item.at("number").as_number(),
            item.at("snapshot").as_text(),
            item.number("creation") or 0,
        )


class MadeFrom(NamedTuple):
    """The size or source of a disposable volume that is created now.

    :ivar size: size and block size; None: do not compare them
    :ivar source: the volume to clone; None: it would be blank
    """

    size: VolumeSpec | None = None
    source: VolumeName | None = None


@dataclass(frozen=True)
class StateQuery:
    """The parts of a VolumeState to report besides the basic ones.

    :ivar native: native properties of the current generation, with numbers as
        values; each makes the program slower
    :ivar revisions: report the revisions and what follows from them
    :ivar dates: report when each revision was created, instead of what follows
    :ivar counted: report ``numbers``, unless the volume is resettable
    :ivar tuned: report ``tuned``
    :ivar writable: report ``read_only_by``
    :ivar made_from: what a disposable volume is compared with
    :ivar checked: report ``violation``
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

    Names and values are any bytes from the disk, decoded with surrogates.

    :ivar value: its value; None: it has none
    :ivar source: the dataset where it is set; "$recvd": it was received
    :ivar required: the value that it must have
    """

    dataset: str
    property: str
    value: str | None
    source: str | None
    required: str

    @classmethod
    def from_reply(cls, reply: Reply) -> "Violation | None":
        """Return the violation that a program reports; None: it reports none.

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
    """The state of a volume at one moment, as state.lua reports it.

    programs.py creates one for each query.  Parts that the query does not ask
    for have their default values.  ZFS counts data as written only when its
    transaction group is finished, so *is_modified* and *dirty* can be False for
    some seconds after a write.
    """

    #: whether the container exists; if not, all else is a default value
    container: bool
    #: the pool that has claimed the container; not with ``dates``
    claimed_by: str | None
    #: whether the qube's dataset exists
    qube: bool
    #: whether ZFS would mount the qube's dataset if it is created
    mountable: bool
    #: numbers of all generations, with ``counted``
    numbers: Sequence[int]
    #: whether a container that no pool has claimed was received without its
    #: properties
    bare: bool
    #: number of the current generation; None: the volume does not exist
    current: int | None
    #: whether the content of the current generation is discarded at stop
    is_disposable: bool = False
    #: whether a disposable volume can be rolled back to what would be made now
    is_resettable: bool = False
    #: whether a disposable volume must be rolled back
    is_modified: bool = False
    #: whether a disposable volume is a clone of the committed state of its
    #: source; None: the source has none
    is_up_to_date: bool | None = None
    #: the snapshot that is the committed state; None: there is none
    committed: str | None = None
    #: oldest first; the last is the committed state
    revisions: Sequence[Revision] = ()
    #: whether nothing was ever written to the volume
    blank: bool = False
    #: whether the current content differs from the committed state
    dirty: bool = False
    #: whether *dirty* is uncertain until this process has measured a blank zvol
    unsure: bool = False
    #: whether a crash left a temporary snapshot, or a commit that was not
    #: recorded
    is_unfinished: bool = False
    #: the two parts of the pointer with these names, with ``revisions``
    copied_from: str | None = None
    copy: int | None = None
    #: properties that features set on the current generation
    tuned: str | None = None
    #: the first property that is not allowed; see policy.NotAllowed
    violation: Violation | None = None
    #: the dataset whose readonly=on is in force; None: the volume is writable
    read_only_by: str | None = None
    #: native properties of the current generation
    properties: Mapping[str, int] = field(default_factory=dict)
    #: whether this is an earlier answer, because the zpool does not answer now
    stale: bool = False

    @classmethod
    def from_reply(cls, reply: Reply) -> "VolumeState":
        """Return the state that state.lua reports.

        :raises BadReply: if *reply* is not what state.lua returns
        """
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
