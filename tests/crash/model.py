"""What a volume should hold, in plain Python: the judge of the crash tests."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Content:
    """What is in a volume: a tag written all over it ("" is blank), bytes."""

    tag: str
    size: int


@dataclass(frozen=True)
class Kept:
    """A volume that is saved on stop; None of it exists while ``current`` is
    None.

    :ivar current: what its device shows
    :ivar states: what was committed and is kept, oldest first
    """

    keep: int
    current: Content | None = None
    states: tuple[Content, ...] = ()
    #: whether the last of them is no state that anybody left, and goes with
    #: the next that is committed
    begun: bool = field(default=False, compare=False)

    @property
    def committed(self) -> Content | None:
        """What an export, a clone or a dependent qube's start must see."""
        return self.states[-1] if self.keep >= 0 else self.current

    def created(self, size: int) -> "Kept":
        return self._became(Content("", size), ())

    def removed(self) -> "Kept":
        return Kept(self.keep)

    def written(self, tag: str) -> "Kept":
        return replace(self, current=Content(tag, self.current.size))

    def stopped(self) -> "Kept":
        """stop(), after a session or after a crash."""
        if self.current is None:
            return self
        if self.current == self.committed:
            return self._pruned(self)
        states = (*self._left, self.current)
        return self._pruned(replace(self, states=states, begun=False))

    @property
    def _left(self) -> tuple[Content, ...]:
        """The states that somebody left."""
        return self.states[:-1] if self.begun else self.states

    def imported(self, content: Content) -> "Kept":
        states = self._left
        if states == (Content("", self.current.size),):
            # the blank beginning of a clone or a restored qube is dropped
            states = ()
        return self._became(content, states)

    def begun_anew(self) -> "Kept":
        after = self.imported(Content("", self.current.size))
        return replace(after, begun=True)

    def reverted(self, content: Content) -> "Kept":
        """Nothing is pruned, so that the revert can be undone."""
        states = (*self.states, content)
        return replace(self, current=content, states=states, begun=False)

    def resized(self, size: int) -> "Kept":
        return replace(self, current=Content(self.current.tag, size))

    def _became(self, content: Content, states: tuple[Content, ...]) -> "Kept":
        return self._pruned(Kept(self.keep, content, (*states, content)))

    def _pruned(self, volume: "Kept") -> "Kept":
        if self.keep < 0:
            return replace(volume, states=())
        return replace(volume, states=volume.states[-1 - self.keep :])
