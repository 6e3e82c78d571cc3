"""What may be on the disk after a cut, by what the guest had reported.

Pure: fed with the guest's reports, it judges the state that the next guest
finds.  It knows the rules of doc/design.md and nothing of the code.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from .tags import ZERO, unpacked

#: old revisions that the pool keeps
KEEP = 2

#: the name of each block of a volume
Content = tuple[str, ...]


@dataclass(frozen=True)
class Volume:
    """A volume that exists.

    :ivar states: committed contents, oldest first; the last is *the* one
    :ivar current: what a running qube reads
    :ivar unsure: block -> names that a cut may bring back
    """

    states: tuple[Content, ...]
    current: Content
    unsure: dict[int, frozenset[str]] = field(default_factory=dict)

    @property
    def committed(self) -> Content:
        return self.states[-1]


#: None: there is no such volume
Maybe = Volume | None


def _whole(*states: Content) -> Volume:
    return Volume(states, states[-1])


def _stopped(volume: Volume) -> Volume:
    """What was written is a state; where nothing was, there is none more."""
    changed = volume.current != volume.committed
    states = (*volume.states, *([volume.current] if changed else []))
    return Volume(states[-KEEP - 1 :], volume.current, volume.unsure)


def _replaced(volume: Volume, content: Content, prune: bool) -> list[Volume]:
    """*content* becomes the committed state of a halted volume.

    The state before it stays, once or, if ZFS cannot say that nothing was
    written since, twice; the blank state that create() made may go.
    """
    kept = -KEEP - 1 if prune else None
    outcomes = [
        _whole(*(*volume.states, content)[kept:]),
        _whole(*(*volume.states, volume.current, content)[kept:]),
    ]
    if prune and len(volume.states) == 1 and set(volume.committed) == {ZERO}:
        outcomes.append(_whole(content))
    return outcomes


def written(volume: Volume, begin: dict[str, Any]) -> Volume:
    """After a write: unless it is synced, a cut may bring back what was."""
    current, unsure = list(volume.current), dict(volume.unsure)
    for first, count in begin["extents"]:
        for block in range(first, first + count):
            before = unsure.get(block, frozenset((current[block],)))
            unsure[block] = before | {begin["content"]}
            current[block] = begin["content"]
    return replace(volume, current=tuple(current), unsure=unsure)


def outcomes(volume: Maybe, begin: dict[str, Any]) -> list[Maybe]:
    """What a verb may leave if it runs to its end, *begin* as reported.

    :raises KeyError: for a verb nobody knows
    """
    verb = begin["verb"]
    if verb == "create":
        return [_whole((ZERO,) * begin["blocks"])]
    if verb == "remove":
        return [None]
    assert volume is not None, f"{verb} of a volume that is not there"
    if verb == "start":
        return [volume]
    if verb == "write":
        return [written(volume, begin)]
    if verb == "sync":
        return [replace(volume, unsure={})]
    if verb == "stop":
        return [replace(_stopped(volume), unsure={})]
    if verb == "import":
        return [*_replaced(volume, (begin["content"],) * begin["blocks"], True)]
    if verb == "give up import":
        return [volume]
    if verb == "clone":
        return [
            after
            for source in begin["sources"]
            for after in _replaced(volume, source, True)
        ]
    if verb == "revert":
        content = volume.states[begin["index"]]
        return [*_replaced(volume, content, False)]
    raise KeyError(verb)


def recovered(volume: Maybe) -> list[Maybe]:
    """After qubesd's start: stop() for every halted qube."""
    if volume is None:
        return [None]
    outcomes: list[Maybe] = [_stopped(volume)]
    lost = all(
        now == before or before in volume.unsure.get(block, ())
        for block, (now, before) in enumerate(
            zip(volume.current, volume.committed, strict=False)
        )
    )
    if lost and len(volume.current) == len(volume.committed):
        # all that was written may have been lost with the power
        outcomes.append(_stopped(replace(volume, current=volume.committed)))
    return outcomes


def differs(volume: Maybe, found: list[Content] | None) -> str | None:
    """What is wrong with the committed states *found*; None if nothing."""
    if volume is None:
        return None if found is None else "it is there"
    if found is None:
        return "it is absent"
    if len(found) != len(volume.states):
        return f"{len(found)} states instead of {len(volume.states)}"
    for number, (want, have) in enumerate(
        zip(volume.states, found, strict=True)
    ):
        last = number == len(found) - 1
        if len(want) != len(have):
            return f"state {number} has {len(have)} blocks"
        for block, (name, other) in enumerate(zip(want, have, strict=True)):
            legal = {name}
            if last:
                legal |= volume.unsure.get(block, frozenset())
            if other not in legal:
                return (
                    f"state {number}, block {block}: {other},"
                    f" not {' or '.join(sorted(legal))}"
                )
    return None


class World:
    """All volumes that are kept, and what is being done with them.

    :ivar volumes: vid -> what it may be; more than one only while reports
        leave open whether a state is there twice
    :ivar pending: vid -> the verb in flight, as reported
    :ivar violations: sentences
    :ivar blocks: how many were compared
    :ivar done: verb -> how many ran to their end
    """

    def __init__(self) -> None:
        self.volumes: dict[str, list[Maybe]] = {}
        self.pending: dict[str, dict[str, Any]] = {}
        self.violations: list[str] = []
        self.blocks = 0
        self.done: Counter[str] = Counter()

    def possible(self, vid: str) -> list[Maybe]:
        return self.volumes.get(vid, [None])

    # --- while the guest lives

    def begin(self, report: dict[str, Any]) -> None:
        """A verb begins.

        :param report: vid, verb, and what outcomes() needs
        """
        vid = report["vid"]
        if report["verb"] == "clone":
            sources = {
                each.committed
                for each in self.possible(report["of"])
                if each is not None
            }
            if not sources:
                self.violations.append(f"{vid}: {report['of']} is absent")
                return
            report = {**report, "sources": sorted(sources)}
        self.pending[vid] = report

    def end(self, report: dict[str, Any]) -> None:
        """:param report: vid; states: how many committed ones there are"""
        vid, count = report["vid"], report["states"]
        begin = self.pending.pop(vid)
        self.done[begin["verb"]] += 1
        every = [
            after
            for before in self.possible(vid)
            for after in outcomes(before, begin)
        ]
        self.volumes[vid] = [
            each for each in every if count == (len(each.states) if each else 0)
        ]
        if not self.volumes[vid]:
            self.violations.append(f"{vid}: {count} states at {begin['verb']}")
            self.volumes[vid] = every

    def read(self, report: dict[str, Any]) -> None:
        """What a live guest read; what it cannot have been is ruled out.

        :param report: vid (a volume that was read), content; of (a kept
            volume whose content that must be; absent: zeroes)
        """
        vid, have = report["vid"], unpacked(report["content"])
        self.blocks += len(have)
        wanted = [(ZERO,) * report["blocks"]]
        if "of" in report:
            of = report["of"]
            possible = [each for each in self.possible(of) if each is not None]
            wanted = [
                each.current if of == vid else each.committed
                for each in possible
            ]
            if have in wanted:
                self.volumes[of] = [
                    each
                    for each, want in zip(possible, wanted, strict=True)
                    if want == have
                ]
        if have not in wanted:
            for name, other in zip(
                wanted[0] if wanted else (), have, strict=False
            ):
                if name != other:
                    self.violations.append(f"{vid}: read {other}, not {name}")
                    return
            self.violations.append(f"{vid}: read {len(have)} blocks")

    # --- after a cut

    def judge(self, found: dict[str, list[Content]]) -> None:
        """What the next guest found after its recovery becomes the state.

        :param found: vid -> committed states, of all volumes there are
        """
        for vid in sorted({*self.volumes, *self.pending, *found}):
            possible = self.possible(vid)
            begin = self.pending.get(vid)
            if begin is not None:
                possible = possible + [
                    after
                    for before in possible
                    for after in outcomes(before, begin)
                ]
            have = found.get(vid)
            self.blocks += sum(map(len, have or ()))
            wrong = [
                differs(after, have)
                for each in possible
                for after in recovered(each)
            ]
            if all(wrong):
                verb = f" during {begin['verb']}" if begin else ""
                self.violations.append(
                    f"{vid}, cut{verb}: " + "; or ".join(map(str, wrong))
                )
            self.volumes[vid] = [_whole(*have) if have else None]
        self.pending.clear()
