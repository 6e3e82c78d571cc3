"""From what was measured to the table in doc/performance.md.

python3 -m benchmarks.table MEASURED.json     keep it, write the table
python3 -m benchmarks.table                   write the table from what is
                                              kept
"""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "doc" / "performance.md"
BEGIN, END = "## Measured\n", "## What is not there yet\n"
OURS = "zfs_zvol"


def milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1000


def spread(times: list[float]) -> str:
    return f"{min(times) * 1000:.1f} to {max(times) * 1000:.1f}"


def counts(numbers: list[int]) -> str:
    """The different ones, the least first."""
    if not numbers:
        return ""
    return "/".join(str(number) for number in sorted(set(numbers)))


def about(machine: dict[str, str]) -> str:
    clock = (
        "emulated CPU, a clock that counts instructions (VM_CLOCK=work)"
        if machine["clock"] == "work"
        else "wall clock of the guest"
    )
    core_admin = machine["core-admin"]
    peers = (
        f"the peers' drivers from core-admin {core_admin}"
        if core_admin
        else "without the peers' drivers"
    )
    return (
        f"OpenZFS {machine['openzfs']}, Linux {machine['kernel']}, Python"
        f" {machine['python']}; {clock}; {peers}."
    )


def rows(verbs: dict[str, Any]) -> list[str]:
    """Ours in full, then the others' times and what they are to ours."""
    ours = verbs[OURS]
    lines = [
        "| verb | ms (least to most) | txgs | processes | calls of ZFS |",
        "|---|---|---|---|---|",
    ]
    for verb, cost in ours.items():
        lines.append(
            f"| {verb} | {milliseconds(cost['times']):.1f}"
            f" ({spread(cost['times'])}) | {counts(cost['txgs'])}"
            f" | {counts(cost['forks'])} | {len(cost['calls'])} |"
        )
    others = [name for name in verbs if name != OURS]
    lines += [
        "",
        "| verb | " + " | ".join(others) + " |",
        "|---" * (len(others) + 1) + "|",
    ]
    for verb, cost in ours.items():
        mine = milliseconds(cost["times"])
        cells = []
        for name in others:
            theirs = verbs[name][verb]
            time = milliseconds(theirs["times"])
            cells.append(
                f"{time:.1f} ms, {time / mine:.2g} x,"
                f" {counts(theirs['forks'])}"
            )
        lines.append(f"| {verb} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    if len(sys.argv) > 1:
        KEPT.mkdir(exist_ok=True)
        measured = json.loads(Path(sys.argv[1]).read_text("ascii"))
        version = measured["machine"]["openzfs"].partition("-")[0]
        clock = measured["machine"]["clock"]
        shutil.copy(sys.argv[1], KEPT / f"{version}-{clock}.json")
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    parts = []
    for file in sorted(KEPT.glob("*.json")):
        measured = json.loads(file.read_text("ascii"))
        rounds = len(measured["verbs"][OURS]["create"]["times"])
        parts += [
            f"### {file.stem}",
            "",
            f"{about(measured['machine'])} Medians of {rounds} rounds.",
            "",
            *rows(measured["verbs"]),
            "",
        ]
    after = rest.split(END)[1]
    PAGE.write_text(
        before + BEGIN + "\n" + "\n".join(parts) + END + after, "utf-8"
    )
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
