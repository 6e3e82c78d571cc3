# SPDX-License-Identifier: BSD-2-Clause
"""From what was measured to the table in doc/performance.md.

python3 -m benchmarks.table MEASURED.json     keep it, write the table
python3 -m benchmarks.table                   write the table from what is
                                              kept
"""

import json
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "doc" / "performance.md"
BEGIN, END = "## Measured\n", "## Taken\n"
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


def how_often(numbers: list[int]) -> str:
    """As counts(), with how many of them are such."""
    if len(set(numbers)) < 2:
        return counts(numbers)
    return ", ".join(
        f"{number} ({times} of {len(numbers)})"
        for number, times in sorted(Counter(numbers).items())
    )


def names_of(calls: list[str]) -> str:
    """Each with how often it was made."""
    return ", ".join(
        name if times == 1 else f"{name} ({times})"
        for name, times in sorted(Counter(calls).items())
    )


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


def verbs_of(measured: dict[str, Any]) -> list[str]:
    """Ours in full, then the others' times and what they are to ours."""
    verbs = measured["verbs"]
    ours = verbs[OURS]
    rounds = len(ours["create"]["times"])
    lines = [
        f"Medians of {rounds} rounds.",
        "",
        "| verb | ms (least to most) | of it in ZFS | txgs | processes"
        " | calls of ZFS |",
        "|---|---|---|---|---|---|",
    ]
    for verb, cost in ours.items():
        lines.append(
            f"| {verb} | {milliseconds(cost['times']):.1f}"
            f" ({spread(cost['times'])})"
            f" | {milliseconds(cost['in_calls']):.1f}"
            f" | {how_often(cost['txgs'])}"
            f" | {counts(cost['forks'])} | {names_of(cost['calls'])} |"
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


def scale_of(measured: dict[str, Any]) -> list[str]:
    """A qube's verbs beside more and more volumes."""
    sizes = measured["volumes"]
    empty, *_ = sizes
    *_, full = sizes
    lines = [
        f"Each of the volumes has {measured['revisions']} revisions.",
        "",
        "| beside so many volumes | " + " | ".join(sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for verb in sizes[full]:
        cells = []
        for size, costs in sizes.items():
            if verb not in costs:
                cells.append("")
                continue
            cost = costs[verb]
            if "bytes" in cost:
                cells.append(f"{cost['bytes'] / 1024:.0f} KiB")
                continue
            cell = f"{cost['seconds'] * 1000:.1f} ms, {cost['calls']:.0f} calls"
            first = sizes[empty].get(verb)
            if first and size != empty:
                cell += f", {cost['seconds'] / first['seconds']:.2g} x"
            cells.append(cell)
        lines.append(f"| {verb} | " + " | ".join(cells) + " |")
    return lines


def bulk_of(measured: dict[str, Any]) -> list[str]:
    """A copy between zpools beside dd's."""
    lines = [
        f"{measured['MiB']} MiB, half of it zeroes, from one zpool to another.",
        "",
        "| way | seconds (least to most) | to dd | a qube's start meanwhile"
        " | the slowest | page cache that was kept |",
        "|---|---|---|---|---|---|",
    ]
    ways = measured["ways"]

    def middle(way: str, kind: str) -> float:
        return statistics.median(each[kind] for each in ways[way])

    for way, items in ways.items():
        times = [each["seconds"] for each in items]
        lines.append(
            f"| {way} | {middle(way, 'seconds'):.1f}"
            f" ({min(times):.1f} to {max(times):.1f})"
            f" | {middle(way, 'seconds') / middle('dd', 'seconds'):.2f} x"
            f" | {middle(way, 'start') * 1000:.0f} ms"
            f" | {max(each['slowest start'] for each in items) * 1000:.0f} ms"
            f" | {middle(way, 'cached'):.0%} |"
        )
    return lines


#: what a measurement has in it: its name, and what makes a table of it
KINDS = {
    "verbs": ("verbs", verbs_of),
    "volumes": ("scale", scale_of),
    "ways": ("bulk", bulk_of),
}


def kind_of(measured: dict[str, Any]) -> str:
    (kind,) = KINDS.keys() & measured.keys()
    return kind


def main() -> int:
    if len(sys.argv) > 1:
        KEPT.mkdir(exist_ok=True)
        measured = json.loads(Path(sys.argv[1]).read_text("ascii"))
        version = measured["machine"]["openzfs"].partition("-")[0]
        clock = measured["machine"]["clock"]
        name, _ = KINDS[kind_of(measured)]
        shutil.copy(sys.argv[1], KEPT / f"{name}-{version}-{clock}.json")
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    parts = []
    # the verbs first
    for file in sorted(KEPT.glob("*.json"), reverse=True):
        measured = json.loads(file.read_text("ascii"))
        _, lines = KINDS[kind_of(measured)]
        parts += [
            f"### {file.stem}",
            "",
            f"{about(measured['machine'])}",
            *lines(measured),
            "",
        ]
    after = rest.split(END)[1]
    PAGE.write_text(
        before + BEGIN + "\n" + "\n".join([*parts, ""]) + END + after,
        "utf-8",
    )
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
