# SPDX-License-Identifier: BSD-2-Clause
"""The datasets of a pool that is to be migrated, as ZFS reports them.

The program migratable.lua returns them.  Another machine may have written all
of it.  Names are checked before a step uses them, and values before they are
restored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..store import policy
from ..zfs.reply import Reply

#: properties that migratable.lua reports for a filesystem and for a zvol
SETTINGS = tuple(policy.ROOT_SETTINGS)
ZVOL_SETTINGS = (*policy.SAFE, "readonly")
#: bytes; the most that ZFS itself writes to a volume after an import of its zpool
#: (doc/design.md).  It decides what a plan says and refuses, and nothing else
UNMODIFIED = 8192


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a zvol.

    :ivar name: the part after the @
    :ivar createtxg: the transaction group that it was created in
    :ivar is_leaving: whether it is destroyed together with its last clone
    :ivar own: properties of this driver that are set on it
    :ivar written_after: bytes written to the volume since
    """

    name: str
    createtxg: int
    is_leaving: bool
    own: Mapping[str, str]
    written_after: int

    @classmethod
    def parse(cls, reply: Reply) -> "Snapshot":
        """Return the snapshot that the program describes.

        :raises BadReply: if it describes none
        """
        return cls(
            reply.at("name").as_text(),
            reply.at("createtxg").as_number(),
            reply.flag("deferred"),
            reply.at("own").text_by_name(),
            reply.at("since").as_number(),
        )


@dataclass(frozen=True)
class Dataset:
    """A dataset and its children.

    :ivar type: as zfs(8) calls it: filesystem, volume ...
    :ivar own: properties of this driver that are set on it
    :ivar settings: other properties that are set on it, of those asked for
    :ivar logical: bytes that a zvol refers to, before compression
    """

    name: str
    type: str
    own: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    children: Sequence["Dataset"] = ()
    snapshots: Sequence[Snapshot] = ()
    logical: int = 0

    @property
    def short_name(self) -> str:
        """The last component of the name."""
        return last(self.name)

    @property
    def is_volume(self) -> bool:
        """Whether it is a zvol."""
        return self.type == "volume"

    @property
    def is_filesystem(self) -> bool:
        """Whether it is a filesystem."""
        return self.type == "filesystem"

    @property
    def by_name(self) -> dict[str, "Dataset"]:
        """The children, by the last component of their names."""
        return {child.short_name: child for child in self.children}

    @classmethod
    def parse(cls, reply: Reply) -> "Dataset":
        """Return the dataset that the program describes.

        :raises BadReply: if it describes none
        """
        return cls(
            reply.at("name").as_text(),
            reply.at("type").as_text(),
            reply.at("own").text_by_name(),
            reply.at("set").text_by_name(),
            tuple(map(cls.parse, reply.at("inner").items())),
            tuple(map(Snapshot.parse, reply.at("snapshots").items())),
            reply.number("logical") or 0,
        )


@dataclass(frozen=True)
class Disk:
    """The datasets of a pool.

    :ivar container: None if it does not exist
    :ivar qubes_root: the qubes root of this driver; None if it does not exist
    :ivar old_exists: whether the dataset exists that the qubes' datasets were
        below
    :ivar old: the children of that dataset
    :ivar moved: the children of the qubes root
    """

    container: Dataset | None
    qubes_root: Dataset | None
    old_exists: bool
    old: Sequence[Dataset]
    moved: Sequence[Dataset]

    @classmethod
    def parse(cls, reply: Reply) -> "Disk":
        """Return what the program describes.

        :raises BadReply: if it describes something else
        """
        container, qubes_root = reply.at("container"), reply.at("qubes_root")
        return cls(
            None if container.is_none() else Dataset.parse(container),
            None if qubes_root.is_none() else Dataset.parse(qubes_root),
            reply.flag("old_exists"),
            tuple(map(Dataset.parse, reply.at("old").items())),
            tuple(map(Dataset.parse, reply.at("moved").items())),
        )

    @property
    def volumes(self) -> list[str]:
        """The names of all zvols of qubes, sorted."""
        qubes = (*self.old, *self.moved)
        zvols = {z.name for q in qubes for z in q.children if z.is_volume}
        return sorted(zvols)


def last(dataset: str) -> str:
    """Return the last component of a name."""
    return dataset.rpartition("/")[2]
