"""What adopting a pool of another layout is made of: where it is, and steps.

Pure, as are the plans made of it: from what qubes.xml says of a pool and what
ZFS says of its datasets (program adoptable.lua) to a list of steps.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..store import naming, policy
from ..zfs import lzc
from ..zfs.errors import ZfsError

#: what home must have, besides what upstream's container has
HOME_SETTINGS = policy.HOME_SETTINGS
#: properties that are looked at, of a dataset and of a zvol
SETTINGS = tuple(HOME_SETTINGS)
ZVOL_SETTINGS = (*policy.SAFE, "readonly")

UPSTREAM = "zfs"
OLDER = "older"
#: instead of the old name of a snapshot: it was made by adopting
MADE = "-"
#: snapshots of upstream's driver: committed states and revisions
THEIRS = re.compile(r"(qubes-clean[A-Za-z0-9_.-]*|qubes:[A-Za-z0-9_.:-]+)\Z")
#: bytes; the most that ZFS itself writes to a volume when its zpool is imported
#: (doc/design.md).  Only what a plan says and refuses depends on it
UNTOUCHED = 8192


class Refused(Exception):
    """The pool cannot be adopted; each argument is a sentence."""


@dataclass(frozen=True)
class Known:
    """A volume as qubes.xml has it.

    :ivar attributes: of its element
    """

    qube: str
    klass: str
    attributes: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.attributes.get("name", "")

    @property
    def vid(self) -> str:
        return self.attributes.get("vid", "")

    def persistent(self, was: str) -> bool:
        """Whether its content is kept.  The older driver wrote down that none
        is, and kept all: there the class of the qube tells."""
        if was == UPSTREAM:
            return self.attributes.get("save_on_stop") == "True"
        if self.name == "root":
            return self.klass in ("TemplateVM", "StandaloneVM")
        return self.name == "private" and self.klass != "DispVM"

    @property
    def snapshots(self) -> bool:
        return self.attributes.get("revisions_to_keep") != "-1"


@dataclass(frozen=True)
class Where:
    """A pool, before and after.

    :ivar driver: ours, that it will have
    :ivar was: UPSTREAM or OLDER
    :ivar container: its dataset
    :ivar home: the dataset below which the qubes' datasets will be
    :ivar old: the one below which they were
    """

    pool: str
    driver: str
    was: str
    container: str
    home: str
    old: str

    @property
    def inside(self) -> str:
        """The old place in the container; empty if it is the container."""
        return self.old[len(self.container) + 1 :]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Attributes of volumes that say what is not so; without them the
        qube's class says it."""
        return ("save_on_stop", "snap_on_start") if self.was == OLDER else ()


def where(
    attributes: Mapping[str, str],
    volumes: Sequence[Known],
    before: tuple[str, str] | None = None,
) -> Where:
    """Where a pool is that qubes.xml describes so.

    :param before: of an adopted one: what it was, and in which part of the
        container; one of adopt_record.LAYOUTS
    :raises Refused: if it is no pool that can be adopted
    """
    name, driver = attributes.get("name", ""), attributes.get("driver", "")
    if driver == "zfs_encrypted":
        above = attributes.get("zpool_name", name)
        container = home = f"{above}/encryption/{name}"
    elif driver in (UPSTREAM, "zfs_zvol"):
        container = attributes.get("container", name)
        home = f"{container}/vm"
    else:
        raise Refused(f"the pool {name} is not on ZFS: its driver is {driver}")
    try:
        naming.dataset_name(container)
    except naming.BadName as exc:
        raise Refused(str(exc)) from exc
    if before is not None:
        was, inside = before
        old = f"{container}/{inside}".rstrip("/")
    elif driver == UPSTREAM:
        old, was = container, UPSTREAM
    else:
        deep = [v for v in volumes if v.vid.startswith(f"{container}/vm/")]
        flat = driver == "zfs_encrypted" and not deep
        old, was = container if flat else f"{container}/vm", OLDER
    ours = "zfs_zvol" if driver == UPSTREAM else driver
    return Where(name, ours, was, container, home, old)


# --- steps


@dataclass(frozen=True)
class Step:
    """One thing to do.

    :ivar verb: create, set, rename, change, or note, of which nothing is done
    :ivar dataset: what it is done to
    :ivar text: for a person
    """

    verb: str
    dataset: str
    text: str
    new: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[Mapping[str, str]] = ()

    def details(self) -> Iterator[str]:
        """Every name and value that it sets, a line each."""
        for name, value in self.settings.items():
            yield f"set {name}={value}"
        for change in self.changes:
            what, dataset = change["what"], change["dataset"]
            if what == "set":
                yield f"set {change['name']}={change['value']} of {dataset}"
            elif what == "inherit":
                yield f"inherit {change['name']} of {dataset}"
            elif what == "rename":
                name, value = change["name"], change["value"]
                yield f"rename {dataset}@{name} to @{value}"
            else:
                yield f"{what} {dataset}"


@dataclass
class Plan:
    """:ivar left: what stays as it is, and why; sentences"""

    steps: list[Step] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def checked(self) -> "Plan":
        """:raises Refused: if something is in the way, before anything is
        touched"""
        for step in self.steps:
            for name in _names(step):
                try:
                    lzc.check_name(name, step.verb)
                except ZfsError:
                    self.refused.append(f"{name!r} is no name to work with")
        if self.refused:
            raise Refused(*self.refused)
        return self

    def change(
        self, dataset: str, text: str, changes: Iterable[Mapping[str, str]]
    ) -> None:
        found = tuple(changes)
        if found:
            self.steps.append(Step("change", dataset, text, changes=found))


def _names(step: Step) -> Iterator[str]:
    yield step.dataset
    if step.new:
        yield step.new
    for change in step.changes:
        yield change["dataset"]
        if change["what"] == "rename":
            yield f"{change['dataset']}@{change['name']}"
            yield f"{change['dataset']}@{change['value']}"


def set_property(dataset: str, name: str, value: str) -> dict[str, str]:
    return {"what": "set", "dataset": dataset, "name": name, "value": value}


def inherit(dataset: str, name: str) -> dict[str, str]:
    return {"what": "inherit", "dataset": dataset, "name": name}


def last(dataset: str) -> str:
    return dataset.rpartition("/")[2]


def listed(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list that a channel program gave."""
    return [found[key] for key in sorted(found, key=int)]
