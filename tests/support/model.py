# SPDX-License-Identifier: BSD-2-Clause
"""A model of what a volume may contain, in plain Python.

The model follows the rules of doc/design.md and shares no code with the driver.
The crash tests (tests/crash), the model test (tests/zfs/test_model.py)
and the power cuts (tests/power) compare ZFS with it.
"""

from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar


class AnyContent(Protocol):
    """All the bytes of a volume."""

    def blank(self) -> Self:
        """Return zeroes of the same size."""


C = TypeVar("C", bound=AnyContent)


@dataclass(frozen=True)
class Content:
    """A content that repeats one tag.

    :ivar tag: the tag; "" if the volume is blank
    :ivar size: bytes
    """

    tag: str
    size: int

    def blank(self) -> "Content":
        """Return zeroes of the same size."""
        return replace(self, tag="")


@dataclass(frozen=True)
class VolumeModel(Generic[C]):
    """A volume that is saved on stop; operations return another model.

    :ivar keep: revisions_to_keep of the volume; -1: snapshots are disabled
    :ivar current: content of the device; None if the volume does not exist
    :ivar states: committed contents that are kept, oldest first
    :ivar begun: whether the last state is the blank state that a session was
        reset to; the next commit deletes it
    """

    keep: int
    current: C | None = None
    states: tuple[C, ...] = ()
    begun: bool = field(default=False, compare=False)

    @property
    def committed(self) -> C | None:
        """The content that exports, clones and dependent qubes get."""
        return self.states[-1] if self.keep >= 0 else self.current

    @property
    def _revisions(self) -> tuple[C, ...]:
        """The states that the next commit does not delete."""
        return self.states[:-1] if self.begun else self.states

    def created(self, blank: C) -> Self:
        """Return the model after create()."""
        return self.committing(blank, ())

    def removed(self) -> Self:
        """Return the model after remove()."""
        return replace(self, current=None, states=(), begun=False)

    def showing(self, content: C) -> Self:
        """Return the model after a write, or after a resize without a commit."""
        return replace(self, current=content)

    def stopped(self) -> Self:
        """Return the model after stop(), after a session or a crash."""
        if self.current is None:
            return self
        if self.current == self.committed:
            return self.pruned()
        return self.committing(self.current, self._revisions)

    def imported(self, content: C) -> Self:
        """Return the model after an import of *content*.

        The blank state that create() left is deleted.
        """
        revisions = self._revisions
        if self.current is not None and revisions == (self.current.blank(),):
            revisions = ()
        return self.committing(content, revisions)

    def reset(self) -> Self:
        """Return the model after a start that makes the volume blank."""
        assert self.current is not None
        return replace(self.imported(self.current.blank()), begun=True)

    def reverted(self, content: C) -> Self:
        """Return the model after revert().

        No state is pruned, so that the revert can be undone.
        """
        return self._with(content, self.states)

    def committing(self, content: C, revisions: tuple[C, ...]) -> Self:
        """Return the model with *content* committed after *revisions*."""
        return self._with(content, revisions).pruned()

    def _with(self, content: C, revisions: tuple[C, ...]) -> Self:
        states = (*revisions, content)
        return replace(self, current=content, states=states, begun=False)

    def pruned(self) -> Self:
        """Return the model without the states that are too old to be kept."""
        if self.keep < 0:
            return replace(self, states=())
        return replace(self, states=self.states[-1 - self.keep :])

    def before_import(self, unsure: bool) -> list[Self]:
        """Return the models that an import, clone or revert may start from.

        These operations keep the replaced state as a revision. They commit it
        first if it is not committed.

        :param unsure: whether ZFS may count the current content as modified,
            so that it may be committed a second time
        """
        assert self.current is not None
        if self.keep < 0:
            return [replace(self, states=())]
        again = replace(
            self, states=(*self._revisions, self.current), begun=False
        )
        if self.current != self.committed:
            return [again]
        return [self, again] if unsure else [self]
