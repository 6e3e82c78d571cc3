# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs for a container and everything in it.

The conventions are those of programs.py, which has the programs for one volume.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..zfs import channel
from ..zfs.reply import Reply
from . import naming
from .programs import OURS, Unchecked, limit_arguments, rules
from .state import Limits, Violation

# --- the claim of a container


@dataclass(frozen=True)
class ContainerState:
    """The state of a container, or of its place; see container.lua.

    :ivar parent: whether the dataset above the container exists
    :ivar exists: whether the container exists
    :ivar qubes_root: whether the qubes root exists
    :ivar type: the type of the container, as ZFS spells it
    :ivar claimed_by: the pool that has claimed it: any bytes
    :ivar claimed_above: a dataset above it that a pool has claimed
    :ivar foreign: a child of the qubes root that this driver did not create
    :ivar bare: whether it was received without its properties
    """

    parent: bool
    exists: bool
    qubes_root: bool
    type: str | None
    claimed_by: str | None
    claimed_above: str | None
    foreign: str | None
    bare: bool


async def container(dataset: str, qubes_root: str) -> ContainerState:
    """Return what is at the place of a container."""
    arguments = {
        "container": dataset,
        "qubes_root": qubes_root,
        "claim": naming.CLAIM,
        "prefix": naming.PREFIX,
    }
    reply = await channel.read("container", dataset, arguments)
    return ContainerState(
        reply.flag("parent"),
        reply.flag("exists"),
        reply.flag("qubes_root"),
        reply.text("type"),
        reply.text("claimed_by"),
        reply.text("claimed_above"),
        reply.text("foreign"),
        reply.flag("bare"),
    )


async def claim(dataset: str, pool: str, release: bool) -> str | None:
    """Claim a container for a pool, or release it.

    :return: another pool that has claimed it, and then nothing was changed;
        else None
    """
    arguments = {
        "container": dataset,
        "claim": naming.CLAIM,
        "pool": pool,
        "release": release,
    }
    reply = await channel.change("claim", dataset, arguments)
    return None if reply.is_none() else reply.as_text()


@dataclass(frozen=True)
class PolicyResult:
    """The result of check_policy().

    :ivar missing: the container or the qubes root, if it does not exist
    :ivar claimed_by: the pool that has claimed it: any bytes
    :ivar bare: whether the container was received without its properties
    :ivar violation: the first property that is not allowed
    """

    missing: str | None
    claimed_by: str | None
    bare: bool
    violation: Violation | None


async def check_policy(
    dataset: str,
    qubes_root: str,
    allowed: Mapping[str, str],
    allowed_root: Mapping[str, str],
    limit: int,
) -> PolicyResult:
    """Compare everything in a container with the required properties.

    :param allowed: for the qubes root and everything below, name -> value
    :param allowed_root: for the qubes root in addition
    :param limit: the number of datasets that a pool may have
    """
    arguments = {
        "container": dataset,
        "qubes_root": qubes_root,
        "claim": naming.CLAIM,
        "prefix": naming.PREFIX,
        "limit": limit,
        "rules": rules(allowed),
        "root_rules": rules(allowed_root),
    }
    reply = await channel.read("policy", dataset, arguments)
    return PolicyResult(
        reply.text("missing"),
        reply.text("claimed_by"),
        reply.flag("bare"),
        Violation.from_reply(reply),
    )


@dataclass(frozen=True)
class ClaimedDataset:
    """A dataset that a pool has claimed as its container.

    :ivar claimed_by: the pool's name, as the disk has it: any bytes
    :ivar root: its encryption root; None: it is not encrypted
    :ivar loaded: whether that key is loaded
    """

    dataset: str
    claimed_by: str
    root: str | None
    loaded: bool

    @property
    def is_root(self) -> bool:
        """Whether the dataset is an encryption root."""
        return self.root == self.dataset


async def marks(zpool: str) -> list[ClaimedDataset]:
    """Return the datasets of a zpool that pools have claimed."""
    arguments = {"zpool": zpool, "claim": naming.CLAIM}
    reply = await channel.read("marks", zpool, arguments)
    return [
        ClaimedDataset(
            item.at("dataset").as_text(),
            item.at("claimed_by").as_text(),
            item.text("root"),
            item.flag("loaded"),
        )
        for item in reply.items()
    ]


# --- garbage


@dataclass(frozen=True)
class Candidate:
    """A generation that no pointer needs.

    :ivar guid: its GUID: it is destroyed only if it is still the same zvol
    :ivar holder: its holder mark; None: it has none
    :ivar bookmarks: bookmarks that must be destroyed first
    """

    name: str
    guid: int
    holder: str | None
    bookmarks: Sequence[str]


@dataclass(frozen=True)
class Candidates:
    """The datasets that may be garbage, from garbage.lua.

    :ivar datasets: generations that no pointer needs
    :ivar unsure: a generation that thresholds.py must measure for first; None:
        there is none
    :ivar empty: qubes' datasets that are empty
    """

    datasets: Sequence[Candidate]
    unsure: str | None
    empty: Sequence[str]


async def garbage(
    qubes_root: str, limits: Limits, qube: str | None
) -> Candidates:
    """Return what may be garbage.

    :param qube: dataset of the only qube to check; None: all qubes
    """
    arguments: dict[str, object] = {
        "qubes_root": qubes_root,
        **OURS,
        **limit_arguments(limits),
    }
    if qube is not None:
        arguments["qube"] = qube
    reply = await channel.read("garbage", qubes_root, arguments)
    return Candidates(
        [
            Candidate(
                item.at("name").as_text(),
                item.at("guid").as_number(),
                item.text("holder"),
                item.at("bookmarks").texts(),
            )
            for item in reply.at("datasets").items()
        ],
        reply.text("unsure"),
        reply.at("empty").texts(),
    )


@dataclass(frozen=True)
class Collected:
    """The result of collect().

    :ivar destroyed: the generations that it destroyed
    :ivar busy: garbage that a process has open
    :ivar elsewhere: datasets below other qubes roots that may be garbage
    """

    destroyed: Sequence[str]
    busy: Sequence[str]
    elsewhere: Unchecked


async def collect(
    qubes_root: str,
    limits: Limits,
    candidates: Candidates,
    reserved: Iterable[str],
) -> Collected:
    """Destroy garbage.

    :param candidates: the garbage, as garbage() returned it
    :param reserved: datasets that this process has reserved
    """
    items = [{"name": x.name, "guid": x.guid} for x in candidates.datasets]
    arguments = {
        "qubes_root": qubes_root,
        **OURS,
        **limit_arguments(limits),
        "datasets": items,
        "empty": list(candidates.empty),
        "reserved": {name: True for name in reserved},
    }
    reply = await channel.change("collect", qubes_root, arguments)
    return Collected(
        reply.at("destroyed").texts(),
        reply.at("busy").texts(),
        reply.at("candidates").texts(),
    )


def list_volumes(
    qubes_root: str, note: Callable[[Mapping[str, str]], None]
) -> None:
    """List all volumes, vid -> pointer; block for a limited time.

    :param note: called with the answer in another thread, even if the answer
        comes too late
    :raises SilentZpool: if the zpool does not answer in time
    :raises ZfsError: if ZFS cannot be asked
    """
    channel.ask_for_list(
        "volumes",
        qubes_root,
        {"qubes_root": qubes_root, "prefix": naming.POINTER},
        lambda reply: note(reply.text_by_name()),
    )


async def discarded(
    container: str, qubes_root: str, pool: str
) -> dict[str, str]:
    """Return the disposable volumes of a pool: vid -> holder mark."""
    arguments = {
        "container": container,
        "qubes_root": qubes_root,
        "claim": naming.CLAIM,
        "pool": pool,
        **OURS,
    }
    reply = await channel.read("discarded", qubes_root, arguments)
    return reply.text_by_name()


async def qubes(qubes_root: str) -> list[str]:
    """Return the datasets of all qubes."""
    return (
        await channel.read("qubes", qubes_root, {"qubes_root": qubes_root})
    ).texts()


@dataclass(frozen=True)
class Retained:
    """Bytes below a qube's dataset that its current content does not need.

    :ivar revisions: bytes that only revisions use
    :ivar removed: bytes in generations of removed volumes, which clones need
    """

    revisions: int
    removed: int


async def retained(qubes_root: str, qube: str) -> Retained:
    """Count the bytes that a qube's revisions and removed volumes use."""
    arguments = {"qubes_root": qubes_root, "qube": qube, **OURS}
    reply = await channel.read("retained", qubes_root, arguments)
    return Retained(
        reply.at("revisions").as_number(), reply.at("removed").as_number()
    )


def space_now(qubes_root: str) -> dict[str, int]:
    """Return ``used`` and ``available`` of the qubes root, in bytes.

    Both are absent if the qubes root does not exist.

    :raises ZfsError: if ZFS cannot be asked now
    """
    return channel.ask(
        "space", qubes_root, {"qubes_root": qubes_root}
    ).number_by_name()


async def space(qubes_root: str) -> dict[str, int]:
    """Return the same as space_now(), without a time limit."""
    reply = await channel.read("space", qubes_root, {"qubes_root": qubes_root})
    return reply.number_by_name()


# --- migration


async def migratable(
    dataset: str,
    qubes_root: str,
    old: str,
    settings: Iterable[str],
    zvol_settings: Iterable[str],
) -> Reply:
    """Return what is in a container of another layout; see migratable.lua.

    :param old: the dataset below which the qubes' datasets are now
    :param settings: properties to report for filesystems
    :param zvol_settings: properties to report for zvols
    """
    arguments = {
        "container": dataset,
        "qubes_root": qubes_root,
        "old": old,
        "prefix": naming.PREFIX,
        "settings": list(settings),
        "zvol_settings": list(zvol_settings),
    }
    return await channel.read("migratable", dataset, arguments)


async def change(dataset: str, changes: Iterable[Mapping[str, str]]) -> None:
    """Make all changes in one transaction group; see changes.lua.

    :param dataset: the dataset that an error names
    """
    await channel.change("changes", dataset, {"changes": list(changes)})
