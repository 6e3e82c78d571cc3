# SPDX-License-Identifier: BSD-2-Clause
"""Stop the world at each point of each sequence of operations."""

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
from .operations import RULES, at_rest
from .same import Shape, shape
from .world import World

LOG = logging.getLogger(__name__)
#: seconds between two lines of progress
REPORT_EVERY = 20
#: changing calls in one recovery, at most; a recovery needs fewer than ten
MOST_CALLS = 30
#: revisions_to_keep of each world; each world has a process of its own
WORLDS = (2, 2, 0, 2, -1, 1)
Sequence = tuple[str, ...]


def sequences() -> Iterator[Sequence]:
    """Yield each operation, each pair, and each triple of central operations."""
    central = [name for name, rule in RULES.items() if rule.central]
    yield from ((name,) for name in RULES)
    yield from itertools.product(RULES, repeat=2)
    yield from itertools.product(central, repeat=3)


@dataclass
class Tally:
    """The numbers of what one or all processes tried.

    :ivar done: sequences by their length
    :ivar impossible: sequences with an operation that a rule forbids there
    :ivar repeated: sequences whose last operation was tried in an equal world
    :ivar points: points at which an operation was stopped
    :ivar inside_calls: points of these in the middle of a call
    :ivar outcomes: different worlds that a stop left
    :ivar second_stops: points at which a recovery of these was stopped
    :ivar calls: calls that changed something, by name
    """

    done: Counter[int] = field(default_factory=Counter)
    impossible: int = 0
    repeated: int = 0
    points: int = 0
    inside_calls: int = 0
    outcomes: int = 0
    second_stops: int = 0
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
            f"sequences of operations: {lengths} ({self.repeated} led to worlds"
            f" that were tried already, {self.impossible} were impossible);"
            f" points: {self.points}, {self.inside_calls} of them in the middle"
            f" of a call; different worlds left: {self.outcomes}; second"
            f" stops: {self.second_stops}; violations: {len(self.violations)}"
        )


@dataclass
class Memo:
    """Results that no world needs to compute again; all processes share them.

    :ivar tried: (operation, world it was stopped in) -> the sequence that
        led there first; see same.py for when two worlds are equal
    :ivar leads: (world, operation) -> the world after it; None: impossible
    :ivar recovered: stopped world -> the number of the call in its recovery
        to stop before next, and how many calls the recovery makes. A stop
        before call 0 would leave the same world.
    """

    tried: MutableMapping[tuple[str, Shape], Sequence]
    leads: MutableMapping[tuple[Shape, str], Shape | None]
    recovered: MutableMapping[Shape, tuple[int, int]]


class Enumerator:
    """One world, and the sequences tried in it one after the other."""

    def __init__(
        self, world: World, memo: Memo, report: Callable[[Tally], None]
    ) -> None:
        self.world = world
        self.memo = memo
        self.report = report
        self.tally = Tally()
        #: whether the newest stop was in the middle of a call
        self.inside = False
        #: whether the world is in the state before the last operation
        self.at_last_operation = False

    async def try_all(self, sequence: Sequence) -> None:
        """Stop the last operation of a sequence at each of its points."""
        world, tally = self.world, self.tally
        rest = await self._rest()
        try:
            before = self._predict(rest, sequence)
        except KeyError:
            before = await self._lead(rest, sequence)
        if before is None:
            tally.impossible += 1
            return
        tried = (sequence[-1], before)
        if self.memo.tried.setdefault(tried, sequence) != sequence:
            tally.repeated += 1
            return
        # if a qube runs, it survives the stop or not: two cases
        deaths = (True, False) if world.running else (True,)
        left, place, finished = 0, 0, False
        self.at_last_operation = True
        while not finished:
            for machine in deaths:
                finished = await self._stop_at(sequence, left, place, machine)
            if self.inside or not place:
                place += 1
            else:
                left, place = left + 1, 1
        tally.done[len(sequence)] += 1

    async def _stop_at(
        self, sequence: Sequence, left: int, place: int, machine: bool
    ) -> bool:
        """Stop at one point; return whether the operation finished before.

        Repeat this until the recovery was stopped at each of its points too.
        """
        again, tries = True, 0
        while again:
            tries += 1
            if tries > MOST_CALLS:
                raise Violated("the same stop leaves another world each time")
            if not self.at_last_operation:
                before = await self._lead(await self._rest(), sequence)
                if before is None:
                    raise Violated(f"{sequence} cannot be repeated")
            self.at_last_operation = False
            finished = await self._stop(sequence[-1], left, place, machine)
            again = await self._recover(machine)
            self.report(self.tally)
        self.tally.points += 1
        self.tally.inside_calls += self.inside
        return finished

    async def _rest(self) -> Shape:
        world = self.world
        world.gate.open()
        world.log = ["at rest"]
        return shape(world, await at_rest(world))

    def _predict(self, here: Shape, sequence: Sequence) -> Shape | None:
        """Return the world before the last operation of a sequence.

        None: an operation of the sequence is impossible.

        :raises KeyError: if no world tried this yet
        """
        memo = self.memo
        for name in sequence[:-1]:
            there = memo.leads[here, name]
            if there is None:
                return None
            here = there
        last = sequence[-1]
        if memo.leads.get((here, last), here) is None:
            return None
        if (last, here) not in memo.tried:
            raise KeyError(last, here)
        return here

    async def _lead(self, here: Shape, sequence: Sequence) -> Shape | None:
        """Do all operations but the last; return the world after them.

        None: an operation of the sequence is impossible.
        """
        world = self.world
        for name in sequence[:-1]:
            if not RULES[name].when(world):
                self.memo.leads[here, name] = None
                return None
            world.log.append(name)
            await RULES[name].operation(world)
            there = shape(world, await world.check())
            self.memo.leads[here, name] = there
            here = there
        if not RULES[sequence[-1]].when(world):
            self.memo.leads[here, sequence[-1]] = None
            return None
        return here

    async def _stop(
        self, name: str, left: int, place: int, machine: bool
    ) -> bool:
        """Stop an operation; return whether it finished before the stop.

        :param left: how many changing calls the gate lets through
        :param place: where to stop in the call after these; see Gate
        """
        world = self.world
        how = "machine" if machine else "qubesd"
        where = f"in call {left}, place {place}" if place else f"before {left}"
        world.log.append(f"{name}, {how} stops {where}")
        world.gate.open(left, place)
        with contextlib.suppress(Stopped):
            await RULES[name].operation(world)
            await afterwards()
        # a task in the background may be what ran into the stop
        finished = not world.gate.dead
        await abandoned()
        self.inside = place > 0 and world.gate.left == left
        self.tally.calls.update(world.gate.passed)
        world.gate.open()
        world.lose_memory(machine)
        return finished

    async def _recover(self, machine: bool) -> bool:
        """Recover; return whether the recovery has a later point to stop at.

        In a world that was recovered before, stop the recovery first.
        """
        world, recovered = self.world, self.memo.recovered
        after = shape(world, world.dump())
        if after not in recovered:
            dump = await self._recover_whole()
            calls = len(world.gate.passed)
            world.lose_memory(False)
            await world.recover()
            if names(world.dump()) != names(dump):
                raise Violated("a second recovery changes something")
            self.tally.outcomes += 1
            again = 0
        else:
            again, calls = recovered[after]
            if again < calls:
                await self._stop_again(again, machine)
            await self._recover_whole()
        recovered[after] = again + 1, calls
        return again + 1 < calls

    async def _stop_again(self, again: int, machine: bool) -> None:
        """Stop the recovery before a call, unless it finishes earlier."""
        world = self.world
        world.log.append(f"stops again before call {again}")
        world.gate.open(again)
        with contextlib.suppress(Stopped):
            await world.recover()
        self.tally.second_stops += world.gate.dead
        await abandoned()
        world.gate.open()
        world.lose_memory(machine)

    async def _recover_whole(self) -> Dump:
        await self.world.recover()
        return await self.world.check(stopped=True)


def _ignore_stops(
    loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """Report no background task that ran into a stop, as intended."""
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


async def _try_in_world(
    zpool: str,
    number: int,
    todo: "Queue[Sequence]",
    memo: Memo,
    report: Callable[[Tally], None],
    seconds: float,
    encrypted: bool,
) -> None:
    """Try sequences in one world until none is left or *seconds* passed."""
    asyncio.get_running_loop().set_exception_handler(_ignore_stops)
    with Door() as door:
        world = World(door, zpool, number, WORLDS[number], encrypted)
        await world.set_up()
        await at_rest(world)
        world.disturb()
        events = _record_phases()
        enumerator = Enumerator(world, memo, report)
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
                report(enumerator.tally)


def _process(
    folder: str,
    zpool: str,
    number: int,
    todo: "Queue[Sequence]",
    memo: Memo,
    tallies: MutableMapping[int, Tally],
    seconds: float,
    encrypted: bool,
) -> None:
    qubes.storage.VOLUME_STATE_DIR = folder
    be_patient()

    def report(tally: Tally) -> None:
        tallies[number] = tally

    asyncio.run(
        _try_in_world(zpool, number, todo, memo, report, seconds, encrypted)
    )


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
    """Try the sequences *todo*: single operations first, then as *seed* says.

    :param folder: for the state files of running qubes
    :param worlds: how many of WORLDS try them at the same time
    :param seconds: after this time a world starts no other sequence
    :param part: (number, parts): which of so many equal parts of that order
        to try; (1, 1) tries all
    :param skip: how many sequences to leave out at the start of the part
    :param encrypted: whether the pools are of the driver zfs_encrypted
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
        memo = Memo(manager.dict(), manager.dict(), manager.dict())
        tallies = manager.dict()
        shared = (queue, memo, tallies, seconds, encrypted)
        total = len(order)
        processes = min(worlds, total)
        with ProcessPoolExecutor(processes, context) as pool:
            running = {
                pool.submit(_process, folder, zpool, world, *shared)
                for world in range(processes)
            }
            while running:
                finished, running = wait(running, REPORT_EVERY, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                tally = sum(tallies.values(), Tally())
                started = total - queue.qsize()
                print(f"{started} of {total} started; {tally}", flush=True)
                if tally.violations:
                    # each other process finishes its sequence, then stops
                    total = started
                    with contextlib.suppress(Empty):
                        while True:
                            queue.get_nowait()
        return sum(tallies.values(), Tally())
