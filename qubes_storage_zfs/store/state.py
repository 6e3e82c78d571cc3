"""What ZFS reports of one volume: the question, the answer, its revisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .naming import VolumeName


@dataclass(frozen=True)
class Revision:
    """A committed state of a volume."""

    number: int
    snapshot: str
    #: seconds since the epoch; 0 if not asked for
    creation: int

    @property
    def id(self) -> str:
        return f"r{self.number}"


@dataclass(frozen=True)
class StateQuery:
    """What to ask about a volume, besides what is always told.

    :ivar want: native properties of its current generation
    :ivar revisions: what was committed, and what follows from it
    :ivar dates: when that was, instead of what follows
    :ivar counted: the numbers of its generations, if one is to be made
    :ivar tuned: what its qube's features set on the current one
    :ivar writable: what keeps it from being written to
    :ivar size: of a volume that nobody keeps, if it is made now; text that
        says all that a blank one is made by
    :ivar source: of such a one: the volume that it is cloned from
    :ivar checked: whether its properties are allowed (VolumeState.wrong)
    """

    want: Sequence[str] = ()
    revisions: bool = False
    dates: bool = False
    counted: bool = False
    tuned: bool = False
    writable: bool = False
    size: str | None = None
    source: VolumeName | None = None
    checked: bool = False

    def made_from(self) -> dict[str, Any]:
        """Size and source, as the programs take them."""
        arguments: dict[str, Any] = {}
        if self.size is not None:
            arguments["size"] = self.size
        if self.source is not None:
            arguments["source"] = {
                "qube": self.source.dataset,
                "committed": self.source.committed,
            }
        return arguments


NOTHING_MORE = StateQuery()


@dataclass(frozen=True)
class VolumeState:
    """What ZFS says of one volume at one instant (program state.lua)."""

    #: False if the container itself is missing
    container: bool
    #: not told with dates
    owner: str | None
    #: whether the qube's dataset exists; and whether ZFS would mount it
    qube: bool
    mountable: bool
    #: of all generations, if asked for and one is to be made
    numbers: Sequence[int]
    #: whether a container without owner was received without its properties
    bare: bool
    #: number of the current generation; None if there is no such volume
    current: int | None
    #: whether nobody keeps the content of the current generation
    scratch: bool = False
    #: whether it can be taken back to what would be made now
    usable: bool = False
    #: whether it must be; what was written lately may not count yet
    touched: bool = False
    #: whether it is a clone of the source's committed state, if there is one
    fresh: bool | None = None
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
    frozen: bool = False
    #: what it was reset to when a qube started, and the number of the
    #: revision that is no more than that; with revisions
    begun_from: str | None = None
    begun: int | None = None
    #: what its qube's features set on the current generation, if asked for
    tuned: str | None = None
    #: a property that is not allowed, if asked for; see policy.NotAllowed
    wrong: Mapping[str, Any] | None = None
    #: the dataset where readonly=on is set, if asked for and it is
    read_only_by: str | None = None
    #: native properties of the current generation, as asked for
    properties: Mapping[str, Any] = field(default_factory=dict)
    #: whether it is an earlier answer, because the zpool gives none now
    stale: bool = False

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> "VolumeState":
        return cls(
            container=not answer.get("missing"),
            owner=answer.get("owner"),
            qube=bool(answer.get("qube")),
            mountable=bool(answer.get("mountable", True)),
            numbers=list(answer.get("numbers", {}).values()),
            bare=bool(answer.get("bare")),
            current=answer.get("current"),
            scratch=bool(answer.get("scratch")),
            usable=bool(answer.get("usable")),
            committed=answer.get("committed"),
            touched=bool(answer.get("touched")),
            fresh=answer.get("fresh"),
            revisions=[
                Revision(
                    item["number"], item["snapshot"], item.get("creation", 0)
                )
                for _, item in sorted(
                    answer.get("revisions", {}).items(),
                    key=lambda pair: int(pair[0]),
                )
            ],
            blank=bool(answer.get("blank")),
            dirty=bool(answer.get("dirty")),
            unsure=bool(answer.get("unsure")),
            frozen=bool(answer.get("frozen")),
            begun_from=answer.get("begun_from"),
            begun=answer.get("begun"),
            tuned=answer.get("tuned"),
            wrong=answer.get("wrong"),
            read_only_by=answer.get("read_only_by"),
            properties=answer.get("properties", {}),
        )
