# SPDX-License-Identifier: BSD-2-Clause
"""What may be on the disk after a cut, by what the guest had reported.

Pure: fed with the guest's reports, it judges the state that the next guest
finds.  It knows the rules of doc/design.md and nothing of the code.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ..support.model import VolumeModel
from .tags import ZERO, unpacked

#: old revisions that the pool keeps
KEEP = 2


class Blocks(tuple[str, ...]):
    """The name of each block of a volume."""

    __slots__ = ()

    def blank(self) -> "Blocks":
        """Return as many blocks of zeroes."""
        return Blocks((ZERO,) * len(self))


@dataclass(frozen=True)
class Volume(VolumeModel[Blocks]):
    """A volume that may have lost writes.

    :ivar unsure: block -> names that a cut may bring back
    """

    unsure: dict[int, frozenset[str]] = field(default_factory=dict)


ABSENT = Volume(KEEP)


def _whole(states: list[Blocks]) -> Volume:
    return Volume(KEEP, states[-1], tuple(states)) if states else ABSENT


def _imported(volume: Volume, content: Blocks) -> list[Volume]:
    """Return what an import may leave of a halted volume.

    Until the driver has measured what a blank zvol takes, it keeps the blank
    state that create() made.
    """
    outcomes = [
        before.imported(content) for before in volume.before_import(True)
    ]
    with_blank = volume.committing(content, volume.states)
    return outcomes + [with_blank] * (with_blank not in outcomes)


def written(volume: Volume, begin: dict[str, Any]) -> Volume:
    """After a write: unless it is synced, a cut may bring back what was."""
    current, unsure = list(volume.current), dict(volume.unsure)
    for first, count in begin["extents"]:
        for block in range(first, first + count):
            before = unsure.get(block, frozenset((current[block],)))
            unsure[block] = before | {begin["content"]}
            current[block] = begin["content"]
    return replace(volume, current=Blocks(current), unsure=unsure)


def outcomes(volume: Volume, begin: dict[str, Any]) -> list[Volume]:
    """Return what a verb may leave if it runs to its end.

    :param begin: the verb as it was reported
    :raises KeyError: for an unknown verb
    """
    verb = begin["verb"]
    if verb == "create":
        return [ABSENT.created(Blocks((ZERO,) * begin["blocks"]))]
    if verb == "remove":
        return [ABSENT]
    assert volume != ABSENT, f"{verb} of a volume that is not there"
    if verb in ("start", "give up import"):
        return [volume]
    if verb == "write":
        return [written(volume, begin)]
    synced = replace(volume, unsure={})
    if verb == "sync":
        return [synced]
    if verb == "stop":
        return [synced.stopped()]
    if verb == "import":
        content = Blocks((begin["content"],) * begin["blocks"])
        return _imported(synced, content)
    if verb == "clone":
        return [
            after
            for source in begin["sources"]
            for after in _imported(synced, source)
        ]
    if verb == "revert":
        content = volume.states[begin["index"]]
        return [
            before.reverted(content) for before in synced.before_import(True)
        ]
    raise KeyError(verb)


def recovered(volume: Volume) -> list[Volume]:
    """Return what qubesd's start, which stops halted qubes, may leave."""
    if volume == ABSENT:
        return [ABSENT]
    outcomes = [volume.stopped()]
    lost = all(
        now == before or before in volume.unsure.get(block, ())
        for block, (now, before) in enumerate(
            zip(volume.current, volume.committed, strict=False)
        )
    )
    if lost and len(volume.current) == len(volume.committed):
        # all that was written may have been lost with the power
        outcomes.append(volume.showing(volume.committed).stopped())
    return outcomes


def differs(volume: Volume, found: list[Blocks] | None) -> str | None:
    """What is wrong with the committed states *found*; None if nothing."""
    if volume == ABSENT:
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
        self.volumes: dict[str, list[Volume]] = {}
        self.pending: dict[str, dict[str, Any]] = {}
        self.violations: list[str] = []
        self.blocks = 0
        self.done: Counter[str] = Counter()

    def possible(self, vid: str) -> list[Volume]:
        return self.volumes.get(vid, [ABSENT])

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
                if each != ABSENT
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
            each for each in every if count == len(each.states)
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
            possible = [each for each in self.possible(of) if each != ABSENT]
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

    def judge(self, found: dict[str, list[tuple[str, ...]]]) -> None:
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
            have = (
                [Blocks(state) for state in found[vid]]
                if vid in found
                else None
            )
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
            self.volumes[vid] = [_whole(have or [])]
        self.pending.clear()
