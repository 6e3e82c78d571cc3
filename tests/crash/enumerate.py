# SPDX-License-Identifier: BSD-2-Clause
"""Stop the world at every point of every sequence of verbs."""

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from queue import Empty, Queue
from typing import Any

import qubes.storage

from qubes_storage_zfs.driver.lifecycle import Lifecycle
from qubes_storage_zfs.driver.phases import Event

from ..support.background import abandoned, afterwards, be_patient
from .gate import Door, Dump, Stopped, Violated, names
from .same import Shape, shape
from .verbs import RULES, at_rest
from .world import World

LOG = logging.getLogger(__name__)
#: seconds
TELL_EVERY = 20
#: of one recovery; it takes fewer than ten
MOST_CALLS = 30
#: revisions_to_keep of each world; a process each
WORLDS = (2, 2, 0, 2, -1, 1)
Sequence = tuple[str, ...]


def sequences() -> Iterator[Sequence]:
    """Every verb, every two, and every three of the central ones."""
    central = [name for name, rule in RULES.items() if rule.central]
    yield from ((name,) for name in RULES)
    yield from itertools.product(RULES, repeat=2)
    yield from itertools.product(central, repeat=3)


@dataclass
class Tally:
    """What was tried.

    :ivar done: sequences by their length
    :ivar impossible: sequences that make no sense
    :ivar known: sequences whose last verb was tried in such a world
    :ivar left: different worlds that a stop left behind
    :ivar twice: points at which their recovery was stopped
    """

    done: Counter[int] = field(default_factory=Counter)
    impossible: int = 0
    known: int = 0
    points: int = 0
    inside: int = 0
    left: int = 0
    twice: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            *(
                getattr(self, item.name) + getattr(other, item.name)
                for item in fields(Tally)
            )
        )

    def __str__(self) -> str:
        lengths = ", ".join(
            f"{count} of {length}"
            for length, count in sorted(self.done.items())
        )
        return (
            f"sequences of verbs: {lengths} ({self.known} lead to worlds that"
            f" were tried already, {self.impossible} make no sense); points at"
            f" which the world was stopped: {self.points}, {self.inside} of them"
            f" in the middle of a call; {self.left} different worlds"
            f" after it, stopped again at {self.twice} points of their"
            f" recovery; violations: {len(self.violations)}"
        )


@dataclass
class Known:
    """What no world needs to try again; all processes share it.

    :ivar tried: worlds, with the verb that was stopped in them, and in which
        sequence; see same.py
    :ivar leads: what a verb makes of a world; None: it is impossible there
    :ivar recovered: stopped worlds, the next call of their recovery to stop
        before (before the first it is the same world), and how many it makes
    """

    tried: MutableMapping[tuple[str, Shape], Sequence]
    leads: MutableMapping[tuple[Shape, str], Shape | None]
    recovered: MutableMapping[Shape, tuple[int, int]]


class Enumerator:
    """One world, and the sequences tried in it one after the other."""

    def __init__(
        self, world: World, known: Known, tell: Callable[[Tally], None]
    ) -> None:
        self.world = world
        self.known = known
        self.tell = tell
        self.tally = Tally()
        #: whether the last stop was in the middle of a call
        self.inside = False
        #: whether the world is where the last verb of the sequence begins
        self.ready = False

    async def try_all(self, sequence: Sequence) -> None:
        """All points of a sequence's last verb."""
        world, tally = self.world, self.tally
        rest = await self._rest()
        try:
            before = self._foreseen(rest, sequence)
        except KeyError:
            before = await self._lead(rest, sequence)
        if before is None:
            tally.impossible += 1
            return
        tried = (sequence[-1], before)
        if self.known.tried.setdefault(tried, sequence) != sequence:
            tally.known += 1
            return
        # qubes that survive make two cases of each stop
        deaths = (True, False) if world.running else (True,)
        left, place, ended = 0, 0, False
        self.ready = True
        while not ended:
            for machine in deaths:
                ended = await self._stop_at(sequence, left, place, machine)
            if self.inside or not place:
                place += 1
            else:
                left, place = left + 1, 1
        tally.done[len(sequence)] += 1

    async def _stop_at(
        self, sequence: Sequence, left: int, place: int, machine: bool
    ) -> bool:
        """Stop at one point, as often as it takes to stop the recovery from
        it at every point, too; whether the verb ended before its stop."""
        again, tries = True, 0
        while again:
            tries += 1
            if tries > MOST_CALLS:
                raise Violated("the same stop leaves another world each time")
            if not self.ready:
                before = await self._lead(await self._rest(), sequence)
                if before is None:
                    raise Violated(f"{sequence} cannot be repeated")
            self.ready = False
            ended = await self._stop(sequence[-1], left, place, machine)
            again = await self._recover(machine)
            self.tell(self.tally)
        self.tally.points += 1
        self.tally.inside += self.inside
        return ended

    async def _rest(self) -> Shape:
        world = self.world
        world.gate.open()
        world.log = ["at rest"]
        return shape(world, await at_rest(world))

    def _foreseen(self, here: Shape, sequence: Sequence) -> Shape | None:
        """The world that a sequence's last verb meets; None if a verb is
        impossible.

        :raises KeyError: if nobody was there yet
        """
        known = self.known
        for name in sequence[:-1]:
            there = known.leads[here, name]
            if there is None:
                return None
            here = there
        last = sequence[-1]
        if known.leads.get((here, last), here) is None:
            return None
        if (last, here) not in known.tried:
            raise KeyError(last, here)
        return here

    async def _lead(self, here: Shape, sequence: Sequence) -> Shape | None:
        """Do all verbs but the last; None if any is impossible."""
        world = self.world
        for name in sequence[:-1]:
            if not RULES[name].when(world):
                self.known.leads[here, name] = None
                return None
            world.log.append(name)
            await RULES[name].verb(world)
            there = shape(world, await world.check())
            self.known.leads[here, name] = there
            here = there
        if not RULES[sequence[-1]].when(world):
            self.known.leads[here, sequence[-1]] = None
            return None
        return here

    async def _stop(
        self, name: str, left: int, place: int, machine: bool
    ) -> bool:
        """Let a verb run into its stop; whether it ended before.

        :param left: changing calls that it may still do
        :param place: in the middle of the one after these; see Gate
        """
        world = self.world
        how = "machine" if machine else "qubesd"
        where = f"in call {left}, place {place}" if place else f"before {left}"
        world.log.append(f"{name}, {how} stops {where}")
        world.gate.open(left, place)
        with contextlib.suppress(Stopped):
            await RULES[name].verb(world)
            await afterwards()
        # it may be what nobody waited for that ran into the stop
        ended = not world.gate.dead
        await abandoned()
        self.inside = place > 0 and world.gate.left == left
        self.tally.calls.update(world.gate.passed)
        world.gate.open()
        world.lose_memory(machine)
        return ended

    async def _recover(self, machine: bool) -> bool:
        """Recover from a stop, maybe after a stop of that recovery; whether
        there is a later point of it to stop at."""
        world, recovered = self.world, self.known.recovered
        after = shape(world, world.dump())
        if after not in recovered:
            dump = await self._recover_whole()
            calls = len(world.gate.passed)
            world.lose_memory(False)
            await world.recover()
            if names(world.dump()) != names(dump):
                raise Violated("a second recovery changes something")
            self.tally.left += 1
            again = 0
        else:
            again, calls = recovered[after]
            if again < calls:
                await self._stop_again(again, machine)
            await self._recover_whole()
        recovered[after] = again + 1, calls
        return again + 1 < calls

    async def _stop_again(self, again: int, machine: bool) -> None:
        """Stop in the recovery, unless it is over before."""
        world = self.world
        world.log.append(f"stops again before call {again}")
        world.gate.open(again)
        with contextlib.suppress(Stopped):
            await world.recover()
        self.tally.twice += world.gate.dead
        await abandoned()
        world.gate.open()
        world.lose_memory(machine)

    async def _recover_whole(self) -> Dump:
        await self.world.recover()
        return await self.world.check(stopped=True)


def _say_nothing_of_stops(
    loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """A task that nobody waits for ran into one, as it was to."""
    if not isinstance(context.get("exception"), Stopped):
        loop.default_exception_handler(context)


def _record_phases() -> "deque[str]":
    """Record the newest changes of a volume's phase in this process.

    Their time is in seconds of CLOCK_MONOTONIC.
    """
    events: deque[str] = deque(maxlen=200)
    fire = Lifecycle.fire

    def record(self: Lifecycle, event: Event) -> None:
        before = self.phase
        fire(self, event)
        events.append(
            f"{time.monotonic():.3f} {self._volume.vid} {before.name}"
            f" {event.name} {self.phase.name} {self.commits}"
        )

    Lifecycle.fire = record  # type: ignore[method-assign]
    return events


async def _live(
    zpool: str,
    number: int,
    todo: "Queue[Sequence]",
    known: Known,
    tell: Callable[[Tally], None],
    seconds: float,
    encrypted: bool,
) -> None:
    """One world: take sequences until there are none, or it lived so long."""
    asyncio.get_running_loop().set_exception_handler(_say_nothing_of_stops)
    with Door() as door:
        world = World(door, zpool, number, WORLDS[number], encrypted)
        await world.set_up()
        await at_rest(world)
        world.disturb()
        events = _record_phases()
        enumerator = Enumerator(world, known, tell)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                sequence = todo.get_nowait()
            except Empty:
                return
            try:
                await enumerator.try_all(sequence)
            except Exception as exc:
                LOG.exception("world %d", number)
                enumerator.tally.violations.append(
                    f"{sequence} in world {number} (keep {world.keep}):"
                    f" {type(exc).__name__}: {exc}; {world.log};"
                    f" {', '.join(events)}"
                )
                return
            finally:
                tell(enumerator.tally)


def _process(
    folder: str,
    zpool: str,
    number: int,
    todo: "Queue[Sequence]",
    known: Known,
    tallies: MutableMapping[int, Tally],
    seconds: float,
    encrypted: bool,
) -> None:
    qubes.storage.VOLUME_STATE_DIR = folder
    be_patient()

    def tell(tally: Tally) -> None:
        tallies[number] = tally

    asyncio.run(_live(zpool, number, todo, known, tell, seconds, encrypted))


def run(
    folder: str,
    zpool: str,
    todo: list[Sequence],
    *,
    worlds: int,
    seconds: float,
    seed: int,
    part: tuple[int, int],
    skip: int,
    encrypted: bool,
) -> Tally:
    """Try *todo*, in an order given by *seed* from the second verb on.

    :param folder: for the state files of running qubes
    :param worlds: how many of WORLDS to try them in, side by side
    :param seconds: no world that is so old begins another
    :param part: of how many equal parts of that order to try which; (1, 1)
        is all
    :param skip: so many at its beginning are left out
    :param encrypted: in pools of that driver
    """
    order = list(todo)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda sequence: len(sequence) > 1)
    number, parts = part
    order = order[number - 1 :: parts][skip:]
    context = get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        for sequence in order:
            queue.put(sequence)
        known = Known(manager.dict(), manager.dict(), manager.dict())
        tallies = manager.dict()
        shared = (queue, known, tallies, seconds, encrypted)
        total = len(order)
        processes = min(worlds, total)
        with ProcessPoolExecutor(processes, context) as pool:
            waiting = {
                pool.submit(_process, folder, zpool, world, *shared)
                for world in range(processes)
            }
            while waiting:
                over, waiting = wait(waiting, TELL_EVERY, FIRST_EXCEPTION)
                for future in over:
                    future.result()
                tally = sum(tallies.values(), Tally())
                begun = total - queue.qsize()
                print(f"{begun} of {total} begun; {tally}", flush=True)
                if tally.violations:
                    # the others end with the sequence they are at
                    total = begun
                    with contextlib.suppress(Empty):
                        while True:
                            queue.get_nowait()
        return sum(tallies.values(), Tally())
