"""Stop the world at every point of every sequence of verbs."""

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .gate import Door, Stopped, Violated, names
from .same import Shape, shape
from .verbs import RULES, at_rest
from .world import World

LOG = logging.getLogger(__name__)
Sequence = tuple[str, ...]


def sequences() -> Iterator[Sequence]:
    """Every verb, every two, and every three of the central ones."""
    central = [name for name, rule in RULES.items() if rule.central]
    yield from ((name,) for name in RULES)
    yield from itertools.product(RULES, repeat=2)
    yield from itertools.product(central, repeat=3)


@dataclass
class Tally:
    """What was tried."""

    done: Counter[int] = field(default_factory=Counter)
    impossible: int = 0
    #: sequences whose last verb was tried in such a world
    known: int = 0
    #: worlds, with the verb that was stopped in them; see same.py
    tried: set[tuple[str, Shape]] = field(default_factory=set)
    #: stopped worlds, and the next call of their recovery to stop before;
    #: None: it was stopped everywhere
    recovered: dict[Shape, int | None] = field(default_factory=dict)
    points: int = 0
    twice: int = 0
    half: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    #: when it was last told how far it is; seconds, monotonic
    told: float = 0.0

    def tell(self) -> None:
        """A line of progress, now and then."""
        if time.monotonic() > self.told + 20:
            self.told = time.monotonic()
            print(self, flush=True)

    def __str__(self) -> str:
        lengths = ", ".join(
            f"{count} of {length}"
            for length, count in sorted(self.done.items())
        )
        return (
            f"sequences of verbs: {lengths} ({self.known} lead to worlds that"
            f" were tried already, {self.impossible} make no sense); points at"
            f" which the world was stopped: {self.points}, {self.half} of them"
            f" in the middle of a call; {len(self.recovered)} different worlds"
            f" after it, stopped again at {self.twice} points of their"
            f" recovery; violations: {len(self.violations)}"
        )


class Enumerator:
    """One world, and the sequences tried in it one after the other."""

    def __init__(self, world: World, tally: Tally) -> None:
        self.world = world
        self.tally = tally
        self.has_half = False

    async def try_all(self, sequence: Sequence) -> None:
        """All points of a sequence's last verb."""
        world, tally = self.world, self.tally
        if not await self._prepare(sequence):
            tally.impossible += 1
            return
        before = (sequence[-1], shape(world, world.dump()))
        if before in tally.tried:
            tally.known += 1
            return
        tally.tried.add(before)
        # qubes that survive make two cases of each stop
        deaths = (True, False) if world.running else (True,)
        left, half, ended = 0, False, False
        while not ended:
            for machine in deaths:
                ended = await self._stop_at(sequence, left, half, machine)
            if self.has_half and not half:
                half = True
            else:
                left, half = left + 1, False
        tally.done[len(sequence)] += 1
        tally.tell()

    async def _prepare(self, sequence: Sequence) -> bool:
        world = self.world
        world.gate.open()
        await at_rest(world)
        world.log = ["at rest"]
        for name in sequence[:-1]:
            if not RULES[name].when(world):
                return False
            world.log.append(name)
            await RULES[name].verb(world)
            await world.check()
        return RULES[sequence[-1]].when(world)

    async def _stop_at(
        self, sequence: Sequence, left: int, half: bool, machine: bool
    ) -> bool:
        """Stop at one point, as often as it takes to stop the recovery from
        it at every point, too.

        :param left: changing calls that the verb may still do
        :return: whether the verb ended before its stop came
        """
        world, tally = self.world, self.tally
        tally.points += 1
        tally.half += half
        while True:
            ended = await self._stop(sequence[-1], left, half, machine)
            after = shape(world, world.dump())
            known = after in tally.recovered
            again = tally.recovered.get(after)
            if known and again is not None:
                through = await self._recover_until(again, machine)
                tally.recovered[after] = None if through else again + 1
            dump = await self._recover()
            if not known:
                world.lose_memory(False)
                await world.recover()
                if names(world.dump()) != names(dump):
                    raise Violated("a second recovery changes something")
                tally.recovered[after] = 0
            if not await self._prepare(sequence):
                raise Violated(f"{sequence} cannot be repeated")
            if tally.recovered[after] is None:
                return ended

    async def _recover_until(self, again: int, machine: bool) -> bool:
        """Stop in the recovery; whether that was over before."""
        world = self.world
        world.log.append(f"stops again before call {again}")
        world.gate.open(again)
        try:
            await world.recover()
        except Stopped:
            self.tally.twice += 1
        through = not world.gate.dead
        world.gate.open()
        world.lose_memory(machine)
        return through

    async def _stop(
        self, name: str, left: int, half: bool, machine: bool
    ) -> bool:
        """Let a verb run into its stop; whether it ended before."""
        world = self.world
        how = "machine" if machine else "qubesd"
        where = f"{'in' if half else 'before'} call {left}"
        world.log.append(f"{name}, {how} stops {where}")
        world.gate.open(left, half)
        ended = True
        try:
            await RULES[name].verb(world)
        except Stopped:
            ended = False
        self.has_half = world.gate.has_half
        self.tally.calls.update(world.gate.passed)
        world.gate.open()
        world.lose_memory(machine)
        return ended

    async def _recover(self) -> dict[str, Any]:
        await self.world.recover()
        return await self.world.check(stopped=True)


async def run(
    zpool: str,
    todo: Iterable[Sequence],
    seconds: float,
    seed: int,
    worlds: int = 6,
) -> Tally:
    """Try *todo*, in an order given by *seed* from the second verb on.

    :param seconds: no sequence is begun after that many
    """
    tally = Tally()
    order = list(todo)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda sequence: len(sequence) > 1)
    queue = iter(order)
    end = time.monotonic() + seconds
    with Door() as door:

        async def work(number: int) -> None:
            keep = (2, 2, 0, 2, -1, 1)[number % 6]
            world = World(door, zpool, number, keep)
            await world.pool.setup()
            await at_rest(world)
            world.disturb()
            enumerator = Enumerator(world, tally)
            for sequence in queue:
                if time.monotonic() > end or tally.violations:
                    return
                try:
                    await enumerator.try_all(sequence)
                except Exception as exc:
                    tally.violations.append(
                        f"{sequence} in world {number} (keep {keep}):"
                        f" {type(exc).__name__}: {exc}; {world.log}"
                    )
                    LOG.exception("world %d", number)

        await asyncio.gather(*map(work, range(worlds)))
    return tally
