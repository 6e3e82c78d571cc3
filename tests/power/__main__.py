# SPDX-License-Identifier: BSD-2-Clause
"""Power cuts while qubes live: the side of the host.

    python3 -m tests.power [--cuts N] [--seed S] [--lying]

Ends with what was cut and what was wrong; the exit status is 0 only if
nothing was.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from tests.vm import vm

from .machine import DEVICE, Machine
from .model import World
from .tags import unpacked

DISK_MIB = 1024
#: verbs that begin or end before a cut, at most; so that a slow machine is
#: cut no sooner than a fast one
WORK = 60
#: seconds without a word from the guest that make it a failed one
SILENCE = 180.0
#: part of the cuts that hit the import or the recovery after the last one
EARLY = 0.15
#: part of the cuts that come when the disk has something to lose
AT_STAKE = 0.6
#: seconds to wait for that
STAKE_LIMIT = 10.0
#: guests in a row that may fail before it is no use to go on
HOPELESS = 3

_COMMAND = (
    "cd /root/src && PYTHONPATH=/root/src:/root/src/tests/host"
    " exec python3 -m tests.power.guest {seed} {cut} {manner}"
)
_MARKED = "yes ABCDEFG | dd of={device} bs=4k count=64 seek={at} {how} 2>&1"
_FIRST = "dd if={device} bs=4k count=1 skip={at} iflag=direct 2>/dev/null"


def say(text: str) -> None:
    print(text, flush=True)


def prove_loss(machine: Machine) -> None:
    """What was flushed survives a cut, and what was not does not.

    :raises vm.Failed: if that is not so
    """
    marks = {"flushed": 1024, "unflushed": 2048}

    def seen() -> dict[str, bool]:
        return {
            name: "ABCDEFG"
            in machine.do(
                _FIRST.format(device=DEVICE, at=at) + " | tr -d '\\000'"
            )
            for name, at in marks.items()
        }

    machine.restore(keep=0, piece=512, seed="proof")
    for name, at in marks.items():
        how = "oflag=direct iflag=fullblock"
        if name == "flushed":
            how += " conv=fsync"
        machine.do(_MARKED.format(device=DEVICE, at=at, how=how))
    before = seen()
    machine.cut()
    machine.restore(keep=0, piece=512, seed="proof")
    after = seen()
    machine.cut()
    machine.disk.wipe()
    if not all(before.values()):
        raise vm.Failed(f"what was written cannot be read: {before}")
    if after != {"flushed": True, "unflushed": False}:
        raise vm.Failed(f"the disk does not lose what it should: {after}")
    say("a flushed write survives a cut, and an unflushed one is gone")


class Guest:
    """One guest's life on the host's side: what it tells, until its cut.

    :ivar state: how far it has come
    :ivar wrong: what is wrong with it, in sentences
    """

    def __init__(self, world: World, number: int, early: float | None) -> None:
        self.world = world
        self.number = number
        self.state = "starting"
        self.wrong: list[str] = []
        #: when to cut; seconds on the monotonic clock
        self.deadline: float | None = None
        self.imported = self.recovered = 0.0
        self.reports = 0
        #: the last ones, for whoever looks into a violation
        self.told: deque[str] = deque(maxlen=60)
        self._early = early
        self._buffer = b""

    def hear(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith("@ "):
                self.told.append(text[2:240])
                report = json.loads(text[2:])
                getattr(self, "on_" + report.pop("t"))(report)
            elif text.startswith("guest-exit"):
                self.wrong.append(f"the workload ended: {text}")
                self.deadline = 0.0

    def on_importing(self, _: dict[str, Any]) -> None:
        self.state = "import of the zpool"
        self.imported = time.monotonic()
        if self._early is not None:
            self.deadline = self.imported + self._early

    def on_recovering(self, _: dict[str, Any]) -> None:
        self.state = "recovery"

    def on_checking(self, _: dict[str, Any]) -> None:
        self.state = "check"

    def on_found(self, report: dict[str, Any]) -> None:
        self.state = "end of check"
        found = {
            vid: [unpacked(runs) for runs in states]
            for vid, states in report["volumes"].items()
        }
        self.world.judge(found)
        for vid, runs in report["current"].items():
            if not found[vid] or unpacked(runs) != found[vid][-1]:
                self.wrong.append(f"{vid}: its content is not committed")
        self.wrong += [f"left over: {each}" for each in report["leftovers"]]
        self.wrong += [f"recovered twice: {each}" for each in report["again"]]
        if report["errors"] != "No known data errors":
            self.wrong.append(f"zpool status: {report['errors']}")

    def on_ready(self, _: dict[str, Any]) -> None:
        self.state = "work"
        self.recovered = time.monotonic()

    def on_begin(self, report: dict[str, Any]) -> None:
        self.reports += 1
        self.world.begin(report)

    def on_end(self, report: dict[str, Any]) -> None:
        self.reports += 1
        self.world.end(report)

    def on_read(self, report: dict[str, Any]) -> None:
        self.world.read(report)

    def on_error(self, report: dict[str, Any]) -> None:
        self.wrong.append(report["text"])


class Run:
    """A number of cuts, and what they brought to light."""

    def __init__(self, machine: Machine, seed: str, manner: str) -> None:
        self.machine = machine
        self.seed = seed
        self.manner = manner
        self.world = World()
        self.cuts = 0
        self.in_flight: Counter[str] = Counter()
        self.disk: Counter[str] = Counter()
        self.violations: list[str] = []
        #: guests in a row that did not come to work
        self.failed = 0
        #: seconds from the import to work, the last time
        self._recovery = 5.0
        #: seconds between two reports, the last time
        self._gap = 0.2

    def all(self, cuts: int) -> None:
        """So many cuts, and one more guest that recovers from the last."""
        for number in range(cuts + 1):
            self.guest(number, number == cuts)
            if self.failed == HOPELESS:
                say("no use to go on; the console ends:")
                say(self.machine.console())
                break

    def guest(self, number: int, last: bool) -> None:
        """One guest: it recovers from the cut before, works and is cut."""
        dice = random.Random(f"{self.seed}/{number}")
        keep = dice.choice((0.0, 0.0, 0.1, 0.5, 0.9))
        piece = dice.choice((512, 4096, 0))
        work = 0.0 if last else dice.uniform(0, WORK)
        early = None
        if number > 0 and not last and dice.random() < EARLY:
            early = dice.uniform(0, self._recovery)
        self.machine.restore(keep, piece, f"{self.seed}/{number}")
        guest = Guest(self.world, number, early)
        at_stake = dice.random() < AT_STAKE
        lost = self._live(guest, work, at_stake and not last)
        if guest.recovered:
            self.failed = 0
            if number > 0:
                self._recovery = guest.recovered - guest.imported
            if guest.reports:
                worked = time.monotonic() - guest.recovered
                self._gap = min(worked / guest.reports, 5.0)
        elif early is None:
            self.failed += 1
        for text in guest.wrong + self.world.violations:
            self.violations.append(f"guest {number}: {text}")
            say("VIOLATION, " + self.violations[-1])
        if guest.wrong or self.world.violations:
            say("it had told: " + "\n  ".join(guest.told))
        self.world.violations.clear()
        if not last:
            self._count(guest, lost)

    def _live(
        self, guest: Guest, work: float, at_stake: bool
    ) -> dict[str, int]:
        """Until its cut, which comes *work* reports after it began to work:
        a fraction of one is that part of the usual time between two."""
        command = _COMMAND.format(
            seed=self.seed, cut=guest.number, manner=self.manner
        )
        port = self.machine.start(command)
        lost = None
        heard = time.monotonic()
        while True:
            if guest.deadline is None and guest.state == "work":
                if guest.reports >= int(work):
                    guest.deadline = time.monotonic() + work % 1 * self._gap
            limit = guest.deadline
            if limit is None:
                limit = heard + SILENCE
            if time.monotonic() >= limit and lost is None:
                if guest.deadline is None:
                    # what hangs in its kernel is told there
                    guest.wrong.append(
                        f"silent during {guest.state}, its console ends:\n"
                        + self.machine.console()
                    )
                elif at_stake:
                    self.machine.disk.freeze(STAKE_LIMIT)
                lost = self.machine.cut()
            port.settimeout(max(limit - time.monotonic(), 0.001))
            try:
                data = port.recv(65536)
            except TimeoutError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                break
            heard = time.monotonic()
            # also what it told before the cut and is still on its way
            guest.hear(data)
        if lost is None:
            guest.wrong.append("QEMU ended:\n" + self.machine.console())
            lost = self.machine.cut()
        return lost

    def _count(self, guest: Guest, lost: dict[str, int]) -> None:
        flying = [begin["verb"] for begin in self.world.pending.values()]
        if guest.state != "work":
            flying = [guest.state]
        self.cuts += 1
        self.in_flight.update(flying or ["nothing"])
        self.disk.update(lost)
        say(
            f"cut {guest.number}: {', '.join(sorted(flying)) or 'nothing'};"
            f" unflushed: {lost['lost'] >> 10} KiB lost,"
            f" {lost['kept'] >> 10} KiB kept"
        )

    def summary(self) -> str:
        def table(counter: Counter[str]) -> str:
            return ", ".join(f"{key} {n}" for key, n in counter.most_common())

        return "\n".join(
            (
                f"power cuts: {self.cuts}, seed {self.seed}",
                f"in flight at the cut: {table(self.in_flight)}",
                f"done before a cut: {table(self.world.done)}",
                f"unflushed at the cut: {self.disk['writes']} writes,"
                f" {self.disk['lost'] >> 10} KiB of them lost,"
                f" {self.disk['kept'] >> 10} KiB kept",
                f"blocks checked: {self.world.blocks}",
                f"violations: {len(self.violations)}",
                *self.violations,
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)))
    parser.add_argument(
        "--lying",
        action="store_true",
        help="report flushes that never were: must end in violations",
    )
    args = parser.parse_args()
    say(f"seed {args.seed}, {args.cuts} cuts")
    # a run that is ended early still says what it found
    vm.on_end(signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="qz-power-") as folder:
        machine = Machine(Path(folder), DISK_MIB)
        try:
            machine.boot()
            prove_loss(machine)
            run = Run(machine, args.seed, "lying" if args.lying else "honest")
            try:
                run.all(args.cuts)
            except KeyboardInterrupt:
                say("interrupted")
            say(run.summary())
            return 1 if run.violations or run.cuts < args.cuts else 0
        except vm.Failed as exc:
            vm.say(f"{exc}\nIts console ends:\n{machine.console()}")
            return 1
        except KeyboardInterrupt:
            return 1
        finally:
            machine.close()


if __name__ == "__main__":
    sys.exit(main())
