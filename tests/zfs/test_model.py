"""Any verbs in any order, with an admin's hand between: a model says what
must come out.

    MODEL_EXAMPLES=50 MODEL_STEPS=40 MODEL_SEED=7 python3 -m pytest -v \
        tests/zfs/test_model.py

Without these it is short, and the same each time.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ..crash.life import KEPT, Life
from ..crash.world import MIB, Door
from .conftest import export_zpool, said, sh

ZPOOL = "model"
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "6"))
STEPS = int(os.environ.get("MODEL_STEPS", "15"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
#: between two of these something must change, or they show nothing
PAUSES = (
    "admin_reimports",
    "admin_renames",
    "admin_snapshot",
    "refused_verb",
    "restart",
    "sweep",
)
#: of the volumes that a rule can be about, one
which = st.integers(0, 11)


class Qubes(RuleBasedStateMachine):
    """The rules; what they do is in Life.

    :cvar door: the way around the driver, for looking
    :cvar ran: how often each rule ran
    """

    door: Door
    ran: Counter[str] = Counter()
    refused = 0
    numbers = 0

    life: Life | None = None
    #: the rule before
    last = ""

    @initialize(keep=st.sampled_from([2, 1, 0, -1]))
    def begin(self, keep: int) -> None:
        Qubes.numbers += 1
        self.runner = asyncio.Runner()
        self.life = Life(self.door, ZPOOL, Qubes.numbers, keep)
        self.life.log.append(f"keep {keep}")
        self.runner.run(self.life.begin())

    def do(self, what: str, steps: Awaitable[None] | None = None) -> None:
        """One step; then all that must hold, with space again."""
        life, name = self.life, what.split(" ")[0]
        Qubes.ran[name] += 1
        self.last = name
        life.log.append(what + (" (full)" if life.full else ""))
        was_full = life.full

        async def work() -> None:
            if steps is not None:
                await steps
            if was_full:
                life.relieve()
                await life.sweep()
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

    # --- a person and qubesd

    @precondition(lambda self: self.missing())
    @rule(number=which)
    def create(self, number: int) -> None:
        vid = self.choose(number, *self.missing())
        self.do(f"create {vid}", self.life.create(vid))

    @precondition(lambda self: self.halted())
    @rule(number=which)
    def start(self, number: int) -> None:
        qube = self.choose(number, *self.halted()).split("/")[0]
        self.do(f"start {qube}", self.life.start(qube))

    @precondition(lambda self: self.life.running and not self.life.full)
    @rule(number=which)
    def write(self, number: int) -> None:
        qube = self.choose(number, *sorted(self.life.running))
        self.do(f"write {qube}", self.life.use(qube))

    @precondition(lambda self: self.life.running)
    @rule(number=which)
    def stop(self, number: int) -> None:
        qube = self.choose(number, *sorted(self.life.running))
        self.do(f"stop {qube}", self.life.stop(qube))

    @precondition(lambda self: self.halted())
    @rule(
        number=which,
        size=st.sampled_from([4, 2, 6]),
        end=st.sampled_from([True, False, None]),
    )
    def import_data(self, number: int, size: int, end: bool | None) -> None:
        vid = self.choose(number, *self.halted())
        what = f"import_data {vid} {size} {end}"
        self.do(what, self.life.import_data(vid, size * MIB, end))

    @precondition(lambda self: self.halted() and len(self.readable()) > 1)
    @rule(number=which, other=which)
    def import_volume(self, number: int, other: int) -> None:
        target = self.choose(number, *self.halted())
        sources = [vid for vid in self.readable() if vid != target]
        source = self.choose(other, *sources)
        what = f"import_volume {source} {target}"
        self.do(what, self.life.copy(source, target))

    @precondition(
        lambda self: not self.life.exists("new/private") and self.readable()
    )
    @rule(number=which)
    def clone(self, number: int) -> None:
        source = self.choose(number, *self.readable())

        async def steps() -> None:
            if await self.life.create("new/private"):
                await self.life.check()
                await self.life.copy(source, "new/private")

        self.do(f"clone {source}", steps())

    @precondition(lambda self: self.revertible())
    @rule(number=which, index=which)
    def revert(self, number: int, index: int) -> None:
        vid = self.choose(number, *self.revertible())
        index %= len(self.life.model[vid].states) - 1
        self.do(f"revert {vid} {index}", self.life.revert(vid, index))

    @precondition(lambda self: self.last != "resize")
    @rule(number=which, size=st.sampled_from([6, 4, 2, 8]))
    def resize(self, number: int, size: int) -> None:
        vid = self.choose(number, *self.existing())
        if not self.life.halted(vid):
            size = max(size, self.life.model[vid].current.size // MIB)
        self.do(f"resize {vid} {size}", self.life.resize(vid, size * MIB))

    @precondition(lambda self: self.readable() and len(self.life.exports) < 2)
    @rule(number=which)
    def export(self, number: int) -> None:
        vid = self.choose(number, *self.readable())
        self.do(f"export {vid}", self.life.export(vid))

    @precondition(lambda self: self.life.exports)
    @rule(number=which)
    def export_end(self, number: int) -> None:
        index = number % len(self.life.exports)
        self.do(f"export_end {index}", self.life.export_end(index))

    @precondition(lambda self: set(self.halted()) - {"tmpl/root"})
    @rule(number=which)
    def remove(self, number: int) -> None:
        removable = [vid for vid in self.halted() if vid != "tmpl/root"]
        vid = self.choose(number, *removable)
        self.do(f"remove {vid}", self.life.remove(vid))

    @precondition(lambda self: self.last not in PAUSES)
    @rule(number=which)
    def refused_verb(self, number: int) -> None:
        vid = self.choose(number, *self.existing())
        self.do(f"refused_verb {vid}", self.life.refuse(vid))

    @precondition(lambda self: self.last not in PAUSES)
    @rule()
    def sweep(self) -> None:
        self.do("sweep", self.life.sweep())

    @precondition(lambda self: self.last not in PAUSES)
    @rule()
    def restart(self) -> None:
        self.do("restart", self.life.restart())

    # --- an admin

    @precondition(lambda self: self.last != "fill")
    @rule(slack=st.sampled_from([0, 50_000, 200_000, 600_000]))
    def fill(self, slack: int) -> None:
        self.do(f"fill {slack}")
        self.life.fill(slack)

    @precondition(lambda self: self.last not in PAUSES)
    @rule(number=which)
    def admin_snapshot(self, number: int) -> None:
        vid = self.choose(number, *self.existing())
        self.life.relieve()
        self.life.snapshot(vid)
        self.do(f"admin_snapshot {vid}")

    @precondition(lambda self: self.life.snapshots_by_hand())
    @rule()
    def admin_drops_snapshots(self) -> None:
        self.do("admin_drops_snapshots", self.life.drop_snapshots())

    @precondition(lambda self: self.with_revisions())
    @rule(number=which, index=which)
    def admin_destroys_revision(self, number: int, index: int) -> None:
        vid = self.choose(number, *self.with_revisions())
        index %= len(self.life.model[vid].states) - 1
        what = f"admin_destroys_revision {vid} {index}"
        self.do(what, self.life.destroy_revision(vid, index))

    @precondition(lambda self: self.last not in PAUSES)
    @rule()
    def admin_renames(self) -> None:
        self.life.relieve()
        self.life.rename()
        self.do("admin_renames")

    @precondition(
        lambda self: self.last not in PAUSES
        and not (self.life.running or self.life.exports or self.life.imports)
    )
    @rule()
    def admin_reimports(self) -> None:
        self.life.relieve()
        self.life.reimport()
        self.do("admin_reimports")

    def teardown(self) -> None:
        if self.life is not None:
            Qubes.refused += self.life.refused
            self.life.end()
            self.runner.close()


@pytest.fixture
def model_zpool():
    disk = Path(f"/tmp/{ZPOOL}.img")
    with open(disk, "wb") as file:
        file.truncate(256 * MIB)
    sh("zpool", "create", "-m", "none", ZPOOL, str(disk))
    sh("zfs", "create", f"{ZPOOL}/filler")
    yield
    export_zpool(ZPOOL)
    disk.unlink()


def test_any_verbs_in_any_order(model_zpool):
    begin = time.monotonic()
    try:
        with Door() as Qubes.door:
            run_state_machine_as_test(
                seed(SEED)(Qubes),
                settings=settings(
                    max_examples=EXAMPLES,
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
            f"model: seed {SEED}, {Qubes.numbers} examples,"
            f" {Qubes.ran.total()} steps in {time.monotonic() - begin:.0f} s"
            f" ({Qubes.refused} refused by a full zpool): {steps}"
        )
    assert Qubes.ran.total() >= EXAMPLES
