# SPDX-License-Identifier: BSD-2-Clause
"""What the disk may contain after a cut, computed from the guest's reports.

The model judges the state that the next guest observes.  It has no I/O.  It
follows the rules of doc/design.md and shares no code with the driver.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ..support.model import VolumeModel
from .tags import ZERO, unpacked

#: revisions_to_keep of the pool
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

    Until the driver has measured the space of a blank zvol, it keeps the
    blank state that create() made.
    """
    outcomes = [
        before.imported(content) for before in volume.before_import(True)
    ]
    with_blank = volume.committing(content, volume.states)
    return outcomes + [with_blank] * (with_blank not in outcomes)


def written(volume: Volume, begin: dict[str, Any]) -> Volume:
    """Return the model after a write; until a sync, a cut may undo it."""
    current, unsure = list(volume.current), dict(volume.unsure)
    for first, count in begin["extents"]:
        for block in range(first, first + count):
            before = unsure.get(block, frozenset((current[block],)))
            unsure[block] = before | {begin["content"]}
            current[block] = begin["content"]
    return replace(volume, current=Blocks(current), unsure=unsure)


def outcomes(volume: Volume, begin: dict[str, Any]) -> list[Volume]:
    """Return what an operation may leave if it finishes.

    :param begin: the report of its start
    :raises KeyError: if the operation is unknown
    """
    operation = begin["operation"]
    if operation == "create":
        return [ABSENT.created(Blocks((ZERO,) * begin["blocks"]))]
    if operation == "remove":
        return [ABSENT]
    assert volume != ABSENT, f"{operation} of an absent volume"
    if operation in ("start", "give up import"):
        return [volume]
    if operation == "write":
        return [written(volume, begin)]
    synced = replace(volume, unsure={})
    if operation == "sync":
        return [synced]
    if operation == "stop":
        return [synced.stopped()]
    if operation == "import":
        content = Blocks((begin["content"],) * begin["blocks"])
        return _imported(synced, content)
    if operation == "clone":
        return [
            after
            for source in begin["sources"]
            for after in _imported(synced, source)
        ]
    if operation == "revert":
        content = volume.states[begin["index"]]
        return [
            before.reverted(content) for before in synced.before_import(True)
        ]
    raise KeyError(operation)


def recovered(volume: Volume) -> list[Volume]:
    """Return what may remain after qubesd stops halted qubes at its start."""
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
        # the cut may have lost everything that was written
        outcomes.append(volume.showing(volume.committed).stopped())
    return outcomes


def differs(volume: Volume, observed: list[Blocks] | None) -> str | None:
    """Return what is wrong with the committed states *observed*, or None."""
    if volume == ABSENT:
        return None if observed is None else "it exists"
    if observed is None:
        return "it is absent"
    if len(observed) != len(volume.states):
        return f"{len(observed)} states instead of {len(volume.states)}"
    for number, (expected, actual) in enumerate(
        zip(volume.states, observed, strict=True)
    ):
        last = number == len(observed) - 1
        if len(expected) != len(actual):
            return f"state {number} has {len(actual)} blocks"
        for block, (name, other) in enumerate(
            zip(expected, actual, strict=True)
        ):
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
    """All kept volumes, and the operations in progress on them.

    :ivar volumes: vid -> allowed models; more than one only while the reports
        leave open whether a state was committed twice
    :ivar pending: vid -> report of the start of the operation in progress
    :ivar violations: sentences
    :ivar blocks: how many blocks were compared
    :ivar done: operation -> how many of these finished
    """

    def __init__(self) -> None:
        self.volumes: dict[str, list[Volume]] = {}
        self.pending: dict[str, dict[str, Any]] = {}
        self.violations: list[str] = []
        self.blocks = 0
        self.done: Counter[str] = Counter()

    def possible(self, vid: str) -> list[Volume]:
        return self.volumes.get(vid, [ABSENT])

    # --- while the guest runs

    def start(self, report: dict[str, Any]) -> None:
        """Record that an operation starts.

        :param report: vid, operation, and what outcomes() needs
        """
        vid = report["vid"]
        if report["operation"] == "clone":
            sources = {
                candidate.committed
                for candidate in self.possible(report["of"])
                if candidate != ABSENT
            }
            if not sources:
                self.violations.append(f"{vid}: {report['of']} is absent")
                return
            report = {**report, "sources": sorted(sources)}
        self.pending[vid] = report

    def finish(self, report: dict[str, Any]) -> None:
        """Record that an operation has finished.

        :param report: vid, and states: the number of committed states
        """
        vid, count = report["vid"], report["states"]
        begin = self.pending.pop(vid)
        self.done[begin["operation"]] += 1
        all_after = [
            after
            for before in self.possible(vid)
            for after in outcomes(before, begin)
        ]
        self.volumes[vid] = [
            candidate
            for candidate in all_after
            if count == len(candidate.states)
        ]
        if not self.volumes[vid]:
            self.violations.append(
                f"{vid}: {count} states at {begin['operation']}"
            )
            self.volumes[vid] = all_after

    def read(self, report: dict[str, Any]) -> None:
        """Check what a running guest read, and rule out other models.

        :param report: vid (the volume that was read), content, and of (the
            kept volume whose content this must be; absent: zeroes)
        """
        vid, actual = report["vid"], unpacked(report["content"])
        self.blocks += len(actual)
        allowed = [(ZERO,) * report["blocks"]]
        if "of" in report:
            of = report["of"]
            possible = [
                candidate
                for candidate in self.possible(of)
                if candidate != ABSENT
            ]
            allowed = [
                candidate.current if of == vid else candidate.committed
                for candidate in possible
            ]
            if actual in allowed:
                self.volumes[of] = [
                    candidate
                    for candidate, expected in zip(
                        possible, allowed, strict=True
                    )
                    if expected == actual
                ]
        if actual not in allowed:
            for name, other in zip(
                allowed[0] if allowed else (), actual, strict=False
            ):
                if name != other:
                    self.violations.append(f"{vid}: read {other}, not {name}")
                    return
            self.violations.append(f"{vid}: read {len(actual)} blocks")

    # --- after a cut

    def judge(self, observed: dict[str, list[tuple[str, ...]]]) -> None:
        """Judge what the next guest observed, and go on from there.

        :param observed: vid of each volume -> its committed states
        """
        for vid in sorted({*self.volumes, *self.pending, *observed}):
            possible = self.possible(vid)
            begin = self.pending.get(vid)
            if begin is not None:
                possible = possible + [
                    after
                    for before in possible
                    for after in outcomes(before, begin)
                ]
            actual = (
                [Blocks(state) for state in observed[vid]]
                if vid in observed
                else None
            )
            self.blocks += sum(map(len, actual or ()))
            wrong = [
                differs(after, actual)
                for candidate in possible
                for after in recovered(candidate)
            ]
            if all(wrong):
                operation = f" during {begin['operation']}" if begin else ""
                self.violations.append(
                    f"{vid}, cut{operation}: " + "; or ".join(map(str, wrong))
                )
            self.volumes[vid] = [_whole(actual or [])]
        self.pending.clear()
