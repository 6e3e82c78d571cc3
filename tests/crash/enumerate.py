"""Stop the world at every point of every sequence of verbs."""

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .gate import Door, Stopped, Violated, names
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
            f"sequences of verbs: {lengths} ({self.impossible} make no"
            f" sense); points at which the world was stopped: {self.points},"
            f" {self.half} of them in the middle of a call; stopped again in"
            f" the recovery: {self.twice}; violations:"
            f" {len(self.violations)}"
        )


class Enumerator:
    """One world, and the sequences tried in it one after the other."""

    def __init__(self, world: World, tally: Tally) -> None:
        self.world = world
        self.tally = tally
        self.has_half = False

    async def try_all(self, sequence: Sequence) -> None:
        """All points of a sequence's last verb."""
        world = self.world
        if not await self._prepare(sequence):
            self.tally.impossible += 1
            return
        # qubes that survive make two cases of each stop
        deaths = (True, False) if world.running else (True,)
        left, half, ended = 0, False, False
        while not ended:
            for machine in deaths:
                again, through = None, False
                while not through:
                    ended, through = await self._stop_at(
                        sequence[-1], left, half, machine, again
                    )
                    again = 0 if again is None else again + 1
                    if not await self._prepare(sequence):
                        raise Violated(f"{sequence} cannot be repeated")
            if self.has_half and not half:
                half = True
            else:
                left, half = left + 1, False
        self.tally.done[len(sequence)] += 1
        self.tally.tell()

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
        self,
        name: str,
        left: int,
        half: bool,
        machine: bool,
        again: int | None,
    ) -> tuple[bool, bool]:
        """Stop once, or once more in the recovery, then check everything.

        :param left: changing calls that the verb may still do
        :param again: the same for the recovery; None: it is let through
        :return: whether the verb ended before its stop came; whether the
            recovery did
        """
        world, tally = self.world, self.tally
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
        tally.calls.update(world.gate.passed)
        if again is None:
            tally.points += 1
            tally.half += half
        through = True
        if again is not None:
            world.lose_memory(machine)
            world.gate.open(again)
            try:
                await world.recover()
            except Stopped:
                through = False
            world.log.append(f"stops again before call {again}")
            tally.twice += not through
        world.gate.open()
        world.lose_memory(machine)
        await world.recover()
        dump = await world.check(stopped=True)
        if again is not None:
            return ended, through
        world.lose_memory(False)
        await world.recover()
        if names(world.dump()) != names(dump):
            raise Violated("a second recovery changes something")
        return ended, False


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
