# SPDX-License-Identifier: BSD-2-Clause
"""Cut the power while qubes work: the part on the host.

    python3 -m tests.power [--cuts N] [--seed S] [--lying]

At the end, print what the cuts interrupted, and the violations.  The exit
status is 0 only if there were none.
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
#: reports of started or finished operations before a cut, at most; a number
#: of seconds would leave a slow machine less work than a fast one
MOST_OPERATIONS = 60
#: seconds without output of the guest, after which it counts as failed
SILENCE_LIMIT = 180.0
#: fraction of the cuts that hit the import or recovery after the last cut
EARLY = 0.15
#: fraction of the cuts that wait until the disk has unflushed writes
AT_RISK = 0.6
#: seconds to wait for unflushed writes
RISK_LIMIT = 10.0
#: guests in a row that may fail before the run is given up
MOST_FAILURES = 3

_COMMAND = (
    "cd /root/src && PYTHONPATH=/root/src:/root/src/tests/host"
    " exec python3 -m tests.power.guest {seed} {cut} {mode}"
)
_MARKED = "yes ABCDEFG | dd of={device} bs=4k count=64 seek={at} {options} 2>&1"
_FIRST = "dd if={device} bs=4k count=1 skip={at} iflag=direct 2>/dev/null"


def say(text: str) -> None:
    print(text, flush=True)


def prove_loss(machine: Machine) -> None:
    """Prove that a flushed write survives a cut and an unflushed one does not.

    :raises vm.Failed: if the disk behaves otherwise
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
        options = "oflag=direct iflag=fullblock"
        if name == "flushed":
            options += " conv=fsync"
        machine.do(_MARKED.format(device=DEVICE, at=at, options=options))
    before = seen()
    machine.cut()
    machine.restore(keep=0, piece=512, seed="proof")
    after = seen()
    machine.cut()
    machine.disk.wipe()
    if not all(before.values()):
        raise vm.Failed(f"a write cannot be read back: {before}")
    if after != {"flushed": True, "unflushed": False}:
        raise vm.Failed(f"the disk loses the wrong writes: {after}")
    say("a flushed write survives a cut, and an unflushed one is gone")


class Guest:
    """Collect the reports of one guest until its cut.

    :ivar state: the phase that the guest has reached
    :ivar wrong: sentences about what is wrong with the guest
    """

    def __init__(self, world: World, number: int, early: float | None) -> None:
        self.world = world
        self.number = number
        self.state = "starting"
        self.wrong: list[str] = []
        #: the time of the cut, in seconds of the monotonic clock
        self.deadline: float | None = None
        self.imported = self.recovered = 0.0
        self.reports = 0
        #: the newest reports, printed after a violation
        self.newest_reports: deque[str] = deque(maxlen=60)
        self._early = early
        self._buffer = b""

    def receive(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith("@ "):
                self.newest_reports.append(text[2:240])
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

    def on_observed(self, report: dict[str, Any]) -> None:
        self.state = "end of check"
        states_of = {
            vid: [unpacked(runs) for runs in states]
            for vid, states in report["volumes"].items()
        }
        self.world.judge(states_of)
        for vid, runs in report["current"].items():
            if not states_of[vid] or unpacked(runs) != states_of[vid][-1]:
                self.wrong.append(f"{vid}: its content is not committed")
        self.wrong += [f"garbage: {text}" for text in report["garbage"]]
        self.wrong += [
            f"changed by a second recovery: {text}" for text in report["again"]
        ]
        if report["errors"] != "No known data errors":
            self.wrong.append(f"zpool status: {report['errors']}")

    def on_working(self, _: dict[str, Any]) -> None:
        self.state = "work"
        self.recovered = time.monotonic()

    def on_started(self, report: dict[str, Any]) -> None:
        self.reports += 1
        self.world.start(report)

    def on_finished(self, report: dict[str, Any]) -> None:
        self.reports += 1
        self.world.finish(report)

    def on_read(self, report: dict[str, Any]) -> None:
        self.world.read(report)

    def on_error(self, report: dict[str, Any]) -> None:
        self.wrong.append(report["text"])


class Run:
    """A number of cuts, and the violations that they revealed."""

    def __init__(self, machine: Machine, seed: str, mode: str) -> None:
        self.machine = machine
        self.seed = seed
        self.mode = mode
        self.world = World()
        self.cuts = 0
        self.interrupted: Counter[str] = Counter()
        self.disk: Counter[str] = Counter()
        self.violations: list[str] = []
        #: guests in a row that did not get to work
        self.failed = 0
        #: seconds that the newest import and recovery took
        self._recovery = 5.0
        #: seconds between two reports of the newest guest
        self._gap = 0.2

    def all(self, cuts: int) -> None:
        """Make so many cuts, and let one more guest recover from the last."""
        for number in range(cuts + 1):
            self.guest(number, number == cuts)
            if self.failed == MOST_FAILURES:
                say("too many guests failed in a row; the console ends:")
                say(self.machine.console())
                break

    def guest(self, number: int, last: bool) -> None:
        """Let one guest recover from the last cut and work; then cut it."""
        dice = random.Random(f"{self.seed}/{number}")
        keep = dice.choice((0.0, 0.0, 0.1, 0.5, 0.9))
        piece = dice.choice((512, 4096, 0))
        work = 0.0 if last else dice.uniform(0, MOST_OPERATIONS)
        early = None
        if number > 0 and not last and dice.random() < EARLY:
            early = dice.uniform(0, self._recovery)
        self.machine.restore(keep, piece, f"{self.seed}/{number}")
        guest = Guest(self.world, number, early)
        at_risk = dice.random() < AT_RISK
        lost = self._watch(guest, work, at_risk and not last)
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
            say("its newest reports: " + "\n  ".join(guest.newest_reports))
        self.world.violations.clear()
        if not last:
            self._count(guest, lost)

    def _watch(
        self, guest: Guest, work: float, at_risk: bool
    ) -> dict[str, int]:
        """Read reports until the cut; return what the disk lost.

        :param work: number of reports before the cut; its fraction is a part
            of the usual time between two reports
        :param at_risk: whether the cut waits for unflushed writes
        """
        command = _COMMAND.format(
            seed=self.seed, cut=guest.number, mode=self.mode
        )
        port = self.machine.start(command)
        lost = None
        received = time.monotonic()
        while True:
            if guest.deadline is None and guest.state == "work":
                if guest.reports >= int(work):
                    guest.deadline = time.monotonic() + work % 1 * self._gap
            limit = guest.deadline
            if limit is None:
                limit = received + SILENCE_LIMIT
            if time.monotonic() >= limit and lost is None:
                if guest.deadline is None:
                    # its kernel reports a hung task on the console
                    guest.wrong.append(
                        f"silent during {guest.state}, its console ends:\n"
                        + self.machine.console()
                    )
                elif at_risk:
                    self.machine.disk.freeze(RISK_LIMIT)
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
            received = time.monotonic()
            # includes reports from before the cut that arrive late
            guest.receive(data)
        if lost is None:
            guest.wrong.append("QEMU ended:\n" + self.machine.console())
            lost = self.machine.cut()
        return lost

    def _count(self, guest: Guest, lost: dict[str, int]) -> None:
        interrupted = [
            report["operation"] for report in self.world.pending.values()
        ]
        if guest.state != "work":
            interrupted = [guest.state]
        self.cuts += 1
        self.interrupted.update(interrupted or ["nothing"])
        self.disk.update(lost)
        say(
            f"cut {guest.number}: {', '.join(sorted(interrupted)) or 'nothing'};"
            f" unflushed: {lost['lost'] >> 10} KiB lost,"
            f" {lost['kept'] >> 10} KiB kept"
        )

    def summary(self) -> str:
        def table(counter: Counter[str]) -> str:
            return ", ".join(f"{key} {n}" for key, n in counter.most_common())

        return "\n".join(
            (
                f"power cuts: {self.cuts}, seed {self.seed}",
                f"interrupted by a cut: {table(self.interrupted)}",
                f"finished before a cut: {table(self.world.done)}",
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
        help="report flushes that were not made: must end in violations",
    )
    args = parser.parse_args()
    say(f"seed {args.seed}, {args.cuts} cuts")
    # a run that is interrupted still prints its summary
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
