# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs about a container and all that is in it.

As programs.py, which has those about one volume.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..zfs import channel
from ..zfs.reply import Reply
from . import naming
from .programs import OURS, Unchecked, limit_arguments, rules
from .state import Limits, Violation

# --- which pool a container belongs to


@dataclass(frozen=True)
class ContainerState:
    """What is where a container is or will be; see container.lua.

    :ivar parent: whether the dataset above exists
    :ivar exists: whether the container exists
    :ivar qubes_root: whether the qubes root exists
    :ivar type: of the container, as ZFS spells it
    :ivar claimed_by: the pool whose name is on it, as the disk has it
    :ivar claimed_above: a dataset above it that some pool has claimed
    :ivar foreign: a dataset in the qubes root that is not this driver's
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
    """Look what is where a container is or will be."""
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
    """Mark a container as the pool's, or remove the mark.

    :return: the pool that has it, if that is another; then nothing changed
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
    """What policy.lua garbage.

    :ivar missing: the container or the qubes root, if it does not exist
    :ivar claimed_by: the pool whose name is on the container, as the disk has it
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
    """Compare everything in a container with what is allowed.

    :param allowed: properties of the qubes root and all below, name -> value
    :param allowed_root: of the qubes root besides
    :param limit: number of datasets
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
    """A dataset that is marked as the container of a pool.

    :ivar claimed_by: the pool's name, as the disk has it: any bytes
    :ivar root: the dataset whose key encrypts it; None: it is not encrypted
    :ivar loaded: whether that key is loaded
    """

    dataset: str
    claimed_by: str
    root: str | None
    loaded: bool

    @property
    def is_root(self) -> bool:
        """Whether the dataset has a key of its own."""
        return self.root == self.dataset


async def marks(zpool: str) -> list[ClaimedDataset]:
    """Return the datasets of a zpool that are marked as containers."""
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
    """A generation that no pointer names.

    :ivar holder: mark of the process that made it; None: it has none
    :ivar bookmarks: names of those that must go before it
    """

    name: str
    guid: int
    holder: str | None
    bookmarks: Sequence[str]


@dataclass(frozen=True)
class Candidates:
    """What garbage.lua garbage.

    :ivar unsure: a generation that may be garbage, once thresholds.py has
        measured
    :ivar empty: datasets of qubes that hold nothing
    """

    datasets: Sequence[Candidate]
    unsure: str | None
    empty: Sequence[str]


async def garbage(
    qubes_root: str, limits: Limits, qube: str | None
) -> Candidates:
    """Look for what no pointer names.

    :param qube: dataset of one qube; None: all of them
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
    """What collect.lua did.

    :ivar destroyed: the generations that were destroyed
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

    :param reserved: datasets that are in use here, and so are no garbage
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
    """Ask for all volumes, vid -> pointer, without waiting for long.

    :param note: called with the answer, in another thread, even if it comes
        too late
    :raises SilentZpool: if it does not come in time
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
    """Return the volumes whose content is discarded: vid -> mark."""
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
    """Bytes of a qube's dataset that its volumes do not need.

    :ivar revisions: that revisions alone use
    :ivar removed: that clones of removed volumes keep allocated
    """

    revisions: int
    removed: int


async def retained(qubes_root: str, qube: str) -> Retained:
    """Count what a qube's revisions and removed volumes use."""
    arguments = {"qubes_root": qubes_root, "qube": qube, **OURS}
    reply = await channel.read("retained", qubes_root, arguments)
    return Retained(
        reply.at("revisions").as_number(), reply.at("removed").as_number()
    )


def space_now(qubes_root: str) -> dict[str, int]:
    """Return ``used`` and ``available`` in bytes; empty if *qubes_root* is missing.

    :raises ZfsError: if ZFS cannot be asked now
    """
    return channel.ask(
        "space", qubes_root, {"qubes_root": qubes_root}
    ).number_by_name()


async def space(qubes_root: str) -> dict[str, int]:
    """As space_now(), waited for."""
    reply = await channel.read("space", qubes_root, {"qubes_root": qubes_root})
    return reply.number_by_name()


# --- taking over a pool of another driver


async def migratable(
    dataset: str,
    qubes_root: str,
    old: str,
    settings: Iterable[str],
    zvol_settings: Iterable[str],
) -> Reply:
    """Look what is in the container of another driver; see migratable.lua.

    :param old: where its qubes' datasets are now
    :param settings: properties of filesystems to be reported
    :param zvol_settings: the same of volumes
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
    """Make changes that belong together; changes.lua describes each.

    :param dataset: which a failure is about
    """
    await channel.change("changes", dataset, {"changes": list(changes)})
