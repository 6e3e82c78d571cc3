# SPDX-License-Identifier: BSD-2-Clause
"""The steps of a plan, and the plan.

A step is one call of ZFS.  It creates or renames a dataset, sets native
properties, or makes a list of changes in one transaction group.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..store import messages
from ..zfs import lzc
from ..zfs.errors import ZfsError
from .errors import Refused
from .records import DiskRecord


class Kind(enum.StrEnum):
    """The kind of a change, as changes.lua takes it."""

    RENAME = "rename"
    SET = "set"
    INHERIT = "inherit"
    SNAPSHOT = "snapshot"
    DESTROY = "destroy"


@dataclass(frozen=True)
class Change:
    """A change of a name, snapshot or property; see changes.lua.

    The functions below create them.
    """

    kind: Kind
    dataset: str
    name: str = ""
    value: str = ""

    @property
    def arguments(self) -> dict[str, str]:
        """The change as changes.lua takes it."""
        more = {"name": self.name, "value": self.value}
        return {
            "kind": self.kind,
            "dataset": self.dataset,
            **{key: text for key, text in more.items() if text},
        }

    def names(self) -> Iterator[str]:
        """Yield the datasets and snapshots that the change is about."""
        yield self.dataset
        if self.kind is Kind.RENAME:
            yield f"{self.dataset}@{self.name}"
            yield f"{self.dataset}@{self.value}"

    def __str__(self) -> str:
        """Return the change as a line for the user."""
        if self.kind is Kind.SET:
            return f"set {self.name}={self.value} of {self.dataset}"
        if self.kind is Kind.INHERIT:
            return f"inherit {self.name} of {self.dataset}"
        if self.kind is Kind.RENAME:
            return f"rename {self.dataset}@{self.name} to @{self.value}"
        return f"{self.kind} {self.dataset}"


def set_property(dataset: str, name: str, value: str) -> Change:
    """Return the change that sets a user property."""
    return Change(Kind.SET, dataset, name, value)


def inherit(dataset: str, name: str) -> Change:
    """Return the change that removes a property's own value."""
    return Change(Kind.INHERIT, dataset, name)


def rename_snapshot(dataset: str, name: str, new: str) -> Change:
    """Return the change that renames dataset@name to dataset@new."""
    return Change(Kind.RENAME, dataset, name, new)


def take_snapshot(snapshot: str) -> Change:
    """Return the change that creates a snapshot."""
    return Change(Kind.SNAPSHOT, snapshot)


def destroy(dataset: str) -> Change:
    """Return the change that destroys an unused dataset or snapshot."""
    return Change(Kind.DESTROY, dataset)


# --- steps


@dataclass(frozen=True)
class Step:
    """One call; see the subclasses.

    :ivar dataset: the dataset that it changes
    :ivar text: for a person, after the dataset's name
    """

    dataset: str
    text: str

    def details(self) -> Iterator[str]:
        """Yield a line for every name and value that it sets."""
        return iter(())

    def names(self) -> Iterator[str]:
        """Yield every dataset and snapshot that it changes."""
        yield self.dataset


@dataclass(frozen=True)
class CreateRoot(Step):
    """Create a qubes root."""


@dataclass(frozen=True)
class SetProperties(Step):
    """Set native properties."""

    settings: Mapping[str, str]

    def details(self) -> Iterator[str]:
        """Yield a line for each property."""
        for name, value in self.settings.items():
            yield f"set {name}={value}"


@dataclass(frozen=True)
class RenameDataset(Step):
    """Rename a dataset and everything below it."""

    new: str

    def names(self) -> Iterator[str]:
        """Yield the old name and the new one."""
        yield self.dataset
        yield self.new


@dataclass(frozen=True)
class ChangeTogether(Step):
    """Make all changes, or none, in one transaction group."""

    changes: Sequence[Change]

    def details(self) -> Iterator[str]:
        """Yield a line for each change."""
        return map(str, self.changes)

    def names(self) -> Iterator[str]:
        """Yield the dataset, and those of each change."""
        yield self.dataset
        for change in self.changes:
            yield from change.names()


# --- plans


@dataclass
class Plan:
    """A list of steps, and the reasons not to carry them out.

    plan_migration() or plan_undo() creates it and fills it in.

    :ivar steps: the steps in their order
    :ivar refused: reasons not to carry out any step
    :ivar left: sentences about what is not changed, and why
    :ivar record: the record that the first step writes to the container; None
        if an earlier run wrote it, and in the plan of an undo
    """

    steps: list[Step] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    record: DiskRecord | None = None

    def change(
        self, dataset: str, text: str, changes: Iterable[Change]
    ) -> None:
        """Add a step for *changes*, if there are any."""
        together = tuple(changes)
        if together:
            self.steps.append(ChangeTogether(dataset, text, together))

    def refuse(self, template: str, **data: object) -> None:
        """Add a reason not to carry out the plan."""
        self.refused.append(str(messages.Refused(template, **data)))

    def leave(self, template: str, **data: object) -> None:
        """Add a sentence about something that is not changed."""
        self.left.append(template.format(**data))

    def checked(self) -> "Plan":
        """Return the plan, if it can be carried out.

        :raises Refused: with all reasons not to carry it out
        """
        for step in self.steps:
            for name in step.names():
                try:
                    lzc.check_name(name, type(step).__name__)
                except ZfsError:
                    self.refuse(messages.ADOPT_BAD_NAME, name=name)
        if self.refused:
            raise Refused(*self.refused)
        return self
