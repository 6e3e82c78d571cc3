# SPDX-License-Identifier: BSD-2-Clause
"""Random operations and changes by an administrator, checked with a model.

    make test-model MODEL_EXAMPLES=50 MODEL_STEPS=40 MODEL_SEED=7

Without these variables the test is short and always the same.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ..crash.gate import Door
from ..crash.life import KEPT, Life
from ..crash.world import MIB
from ..support.report import said
from ..support.zpools import create_zpool, disk_of, export_zpool, sh

pytestmark = pytest.mark.side_a

ZPOOL = "model"
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "5"))
#: fewer, because each load of the key starts a process
EXAMPLES_ENCRYPTED = max(1, EXAMPLES * 2 // 5)
STEPS = int(os.environ.get("MODEL_STEPS", "14"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
#: steps that are useful only after a change
PAUSES = (
    "admin_reimports",
    "admin_renames",
    "admin_snapshot",
    "refused_verb",
    "restart",
    "sweep",
)
#: the index of a volume
which = st.integers(0, 11)


Step = Callable[["Qubes", int, int], None]
When = Callable[["Qubes"], object]
#: the steps by name, and when each makes sense
POSSIBLE: dict[str, When] = {}


def possible(when: When) -> Callable[[Step], Step]:
    """Register a step of Qubes; its two numbers choose its arguments."""

    def enter(step: Step) -> Step:
        POSSIBLE[step.__name__] = when
        return step

    return enter


class Qubes(RuleBasedStateMachine):
    """The rules; Life has the implementation.

    :cvar door: access to the disk without the driver
    :cvar ran: how often each rule ran
    """

    door: Door
    ran: Counter[str] = Counter()
    #: use an encrypted pool, whose key is often unloaded
    encrypted = False
    refused = 0
    numbers = 0

    life: Life | None = None
    #: the name of the previous step
    last = ""
    steps = 0

    @initialize(keep=st.sampled_from([2, 1, 0, -1]))
    def begin(self, keep: int) -> None:
        Qubes.numbers += 1
        self.runner = asyncio.Runner()
        self.life = Life(self.door, ZPOOL, Qubes.numbers, keep, Qubes.encrypted)
        self.life.log.append(f"keep {keep}")
        self.runner.run(self.life.begin())

    def do(self, what: str, steps: Awaitable[None] | None = None) -> None:
        """Run one step; then free space and check the model."""
        life, name = self.life, what.split(" ")[0]
        Qubes.ran[name] += 1
        self.last = name
        life.log.append(what + (" (full)" if life.full else ""))
        was_full = life.full

        async def work() -> None:
            if life.encrypted and self.steps % 3 == 0:
                life.lock()
            if steps is not None:
                await steps
            if was_full:
                life.relieve()
                await life.collect_garbage()
            life.unlock()
            await life.check()

        try:
            self.runner.run(work())
        except Exception as exc:
            exc.add_note(f"after {life.log}")
            raise

    def choose(self, number: int, *wanted: str) -> str:
        return wanted[number % len(wanted)]

    def halted(self) -> list[str]:
        return [vid for vid in KEPT if self.life.halted(vid)]

    def existing(self) -> list[str]:
        return [vid for vid in KEPT if self.life.exists(vid)]

    def missing(self) -> list[str]:
        return [vid for vid in KEPT if not self.life.exists(vid)]

    def readable(self) -> list[str]:
        return [vid for vid in KEPT if self.life.readable(vid)]

    def with_revisions(self) -> list[str]:
        model = self.life.model
        return [vid for vid in KEPT if len(model[vid].states) > 1]

    def revertible(self) -> list[str]:
        return [vid for vid in self.with_revisions() if self.life.halted(vid)]

    # --- a user and qubesd

    @possible(lambda self: self.missing())
    def create(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.missing())
        self.do(f"create {vid}", self.life.create(vid))

    @possible(lambda self: self.halted())
    def start(self, number: int, other: int) -> None:
        qube = self.choose(number, *self.halted()).split("/")[0]
        self.do(f"start {qube}", self.life.start(qube))

    @possible(lambda self: self.life.running and not self.life.full)
    def write(self, number: int, other: int) -> None:
        qube = self.choose(number, *sorted(self.life.running))
        self.do(f"write {qube}", self.life.use(qube))

    @possible(lambda self: self.life.running)
    def stop(self, number: int, other: int) -> None:
        qube = self.choose(number, *sorted(self.life.running))
        self.do(f"stop {qube}", self.life.stop(qube))

    @possible(lambda self: self.halted())
    def import_data(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.halted())
        size = (4, 2, 6)[other % 3]
        end = (True, False, True, None)[other // 3]
        what = f"import_data {vid} {size} {end}"
        self.do(what, self.life.import_data(vid, size * MIB, end))

    @possible(lambda self: self.halted() and len(self.readable()) > 1)
    def import_volume(self, number: int, other: int) -> None:
        target = self.choose(number, *self.halted())
        sources = [vid for vid in self.readable() if vid != target]
        source = self.choose(other, *sources)
        what = f"import_volume {source} {target}"
        self.do(what, self.life.copy(source, target))

    @possible(
        lambda self: not self.life.exists("new/private") and self.readable()
    )
    def clone(self, number: int, other: int) -> None:
        source = self.choose(number, *self.readable())

        async def steps() -> None:
            if await self.life.create("new/private"):
                await self.life.check()
                await self.life.copy(source, "new/private")

        self.do(f"clone {source}", steps())

    @possible(lambda self: self.revertible())
    def revert(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.revertible())
        index = other % (len(self.life.model[vid].states) - 1)
        self.do(f"revert {vid} {index}", self.life.revert(vid, index))

    @possible(lambda self: self.last != "resize")
    def resize(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.existing())
        size = (6, 4, 2, 8)[other % 4]
        if not self.life.halted(vid):
            size = max(size, self.life.model[vid].current.size // MIB)
        self.do(f"resize {vid} {size}", self.life.resize(vid, size * MIB))

    @possible(lambda self: self.readable() and len(self.life.exports) < 2)
    def export(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.readable())
        self.do(f"export {vid}", self.life.export(vid))

    @possible(lambda self: self.life.exports)
    def export_end(self, number: int, other: int) -> None:
        index = number % len(self.life.exports)
        self.do(f"export_end {index}", self.life.export_end(index))

    @possible(lambda self: set(self.halted()) - {"tmpl/root"})
    def remove(self, number: int, other: int) -> None:
        removable = [vid for vid in self.halted() if vid != "tmpl/root"]
        vid = self.choose(number, *removable)
        self.do(f"remove {vid}", self.life.remove(vid))

    @possible(lambda self: self.last not in PAUSES)
    def refused_verb(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.existing())
        self.do(f"refused_verb {vid}", self.life.refuse(vid))

    @possible(lambda self: self.last not in PAUSES)
    def sweep(self, number: int, other: int) -> None:
        self.do("sweep", self.life.collect_garbage())

    @possible(lambda self: self.last not in PAUSES)
    def restart(self, number: int, other: int) -> None:
        self.do("restart", self.life.restart())

    # --- an administrator

    @possible(lambda self: self.last != "fill")
    def fill(self, number: int, other: int) -> None:
        slack = (0, 0, 50_000, 200_000)[other % 4]
        self.do(f"fill {slack}")
        self.life.fill(slack)

    @possible(lambda self: self.last not in PAUSES)
    def admin_snapshot(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.existing())
        self.life.relieve()
        self.life.snapshot(vid)
        self.do(f"admin_snapshot {vid}")

    @possible(lambda self: self.life.snapshots_by_hand())
    def admin_drops_snapshots(self, number: int, other: int) -> None:
        self.do("admin_drops_snapshots", self.life.drop_snapshots())

    @possible(lambda self: self.with_revisions())
    def admin_destroys_revision(self, number: int, other: int) -> None:
        vid = self.choose(number, *self.with_revisions())
        index = other % (len(self.life.model[vid].states) - 1)
        what = f"admin_destroys_revision {vid} {index}"
        self.do(what, self.life.destroy_revision(vid, index))

    @possible(lambda self: self.last not in PAUSES)
    def admin_renames(self, number: int, other: int) -> None:
        self.life.relieve()
        self.life.rename()
        self.do("admin_renames")

    @possible(
        lambda self: self.last not in PAUSES
        and not (self.life.running or self.life.exports or self.life.imports)
    )
    def admin_reimports(self, number: int, other: int) -> None:
        self.life.relieve()
        self.life.reimport()
        self.do("admin_reimports")

    @rule(pick=st.integers(0, 999), number=which, other=which)
    def step(self, pick: int, number: int, other: int) -> None:
        """Run one of the possible steps, each with the same probability.

        With one rule for each step, hypothesis would leave most of them out
        of an example, but a short run needs all of them.
        """
        names = [name for name, when in POSSIBLE.items() if when(self)]
        name = names[(pick + 5 * self.steps) % len(names)]
        self.steps += 1
        getattr(self, name)(number, other)

    def teardown(self) -> None:
        if self.life is not None:
            Qubes.refused += self.life.refused
            print(f"model: {self.steps} steps", flush=True)
            self.life.end()
            self.runner.close()


@pytest.fixture
def model_zpool():
    create_zpool(ZPOOL, disk_of(ZPOOL))
    sh("zfs", "create", f"{ZPOOL}/filler")
    yield
    export_zpool(ZPOOL)
    disk_of(ZPOOL).unlink()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_any_operations_in_any_order_match_the_model(model_zpool, encrypted):
    begin = time.monotonic()
    Qubes.encrypted, Qubes.refused = encrypted, 0
    Qubes.ran.clear()
    before = Qubes.numbers
    try:
        with Door() as Qubes.door:
            run_state_machine_as_test(
                seed(SEED)(Qubes),
                settings=settings(
                    max_examples=(
                        EXAMPLES_ENCRYPTED if encrypted else EXAMPLES
                    ),
                    stateful_step_count=STEPS,
                    derandomize=True,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
    finally:
        steps = ", ".join(
            f"{n} {name}" for name, n in sorted(Qubes.ran.items())
        )
        said.append(
            f"model, {'encrypted' if encrypted else 'plain'}: seed {SEED},"
            f" {Qubes.numbers - before} examples,"
            f" {Qubes.ran.total()} steps in {time.monotonic() - begin:.0f} s"
            f" ({Qubes.refused} refused by a full zpool): {steps}"
        )
    assert Qubes.ran.total() >= Qubes.numbers - before > 0
