# SPDX-License-Identifier: BSD-2-Clause
"""Write the tables of doc/performance-tables.md from the measurements.

    python3 -m benchmarks.table RESULT.json    keep the result, write the page
    python3 -m benchmarks.table                write the page from kept results

doc/performance.md explains the tables.
"""

import json
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "doc" / "performance-tables.md"
OURS = "zfs_zvol"

HEAD = """\
# Performance: the tables

`python3 -m benchmarks.table` writes this page from the files in
`benchmarks/results`; `make bench`, `make bench-scale` and `make bench-bulk`
run it. [performance.md](performance.md#how-to-read-the-tables) explains each
column and cell.
"""

#: names in the files with results -> names in the tables
SHOWN = {
    "after a stop": "preparation of the next start",
    "init of all": "create all volume objects",
    "first use": "first use of the pool",
    "stop of one that did not run": "stop of a volume that did not run",
    "first poll of all": "first poll of all volumes",
    "a poll of all": "later poll of all volumes",
    "count of what revisions hold": "count of the space of revisions",
    "memory, all made": "memory of all volume objects",
    "memory, then listed and 50 stopped": "memory after a listing and 50 stops",
}
#: milliseconds; a shorter time is an answer from memory, or nothing at all
LEAST_TIME = 0.1
#: a smaller ratio is not shown in digits
LEAST_RATIO = 0.01


def milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1000


def spread(times: list[float]) -> str:
    return f"{min(times) * 1000:.1f} to {max(times) * 1000:.1f}"


def counts(numbers: list[int]) -> str:
    """Return the different numbers, the least first ("7 or 9")."""
    return " or ".join(str(number) for number in sorted(set(numbers)))


def compared(time: float, ours: float, processes: list[int]) -> str:
    """Return the cell of another driver.

    :param time: milliseconds
    :param ours: milliseconds that our driver takes
    """
    if time < LEAST_TIME:
        return f"< {LEAST_TIME} ms, {counts(processes)}"
    return f"{time:.1f} ms, {times(time / ours)}, {counts(processes)}"


def times(ratio: float) -> str:
    """Return a ratio with two significant digits ("0.38 x", "420 x")."""
    if ratio < LEAST_RATIO:
        return f"< {LEAST_RATIO} x"
    return f"{float(f'{ratio:.2g}'):g} x"


def shown(name: str) -> str:
    """Return the name of a row."""
    return SHOWN.get(name, name)


def how_often(numbers: list[int]) -> str:
    """Return the different numbers and how often each was counted."""
    if len(set(numbers)) < 2:
        return counts(numbers)
    return ", ".join(
        f"{number} ({times} of {len(numbers)})"
        for number, times in sorted(Counter(numbers).items())
    )


def names_of(calls: list[str]) -> str:
    """Return the names of calls, and how often each was made if repeated."""
    return ", ".join(
        name if times == 1 else f"{name} ({times})"
        for name, times in sorted(Counter(calls).items())
    )


def about(machine: dict[str, str]) -> str:
    clock = (
        "an emulated CPU with a clock that counts instructions (VM_CLOCK=work)"
        if machine["clock"] == "work"
        else "the wall clock of the guest"
    )
    core_admin = machine["core-admin"]
    peers = (
        f"compared with the drivers of core-admin {core_admin}"
        if core_admin
        else "without the drivers of core-admin"
    )
    return (
        f"OpenZFS {machine['openzfs']}, Linux {machine['kernel']}, Python"
        f" {machine['python']}; {clock}; {peers}."
    )


def operations_of(measured: dict[str, Any]) -> list[str]:
    """Return a table of our operations, and one of the other drivers."""
    operations = measured["operations"]
    ours = operations[OURS]
    rounds = len(ours["create"]["times"])
    lines = [
        f"Medians of {rounds} rounds.",
        "",
        "| operation | ms (least to most) | ms in ZFS | txgs | processes"
        " | calls of ZFS |",
        "|---|---|---|---|---|---|",
    ]
    for operation, cost in ours.items():
        lines.append(
            f"| {shown(operation)} | {milliseconds(cost['times']):.1f}"
            f" ({spread(cost['times'])})"
            f" | {milliseconds(cost['in_calls']):.1f}"
            f" | {how_often(cost['txgs'])}"
            f" | {counts(cost['forks'])} | {names_of(cost['calls'])} |"
        )
    others = [name for name in operations if name != OURS]
    lines += [
        "",
        "| operation | " + " | ".join(others) + " |",
        "|---" * (len(others) + 1) + "|",
    ]
    for operation, cost in ours.items():
        mine = milliseconds(cost["times"])
        cells = []
        for name in others:
            theirs = operations[name][operation]
            time = milliseconds(theirs["times"])
            cells.append(compared(time, mine, theirs["forks"]))
        lines.append(f"| {shown(operation)} | " + " | ".join(cells) + " |")
    return lines


def scale_of(measured: dict[str, Any]) -> list[str]:
    """Return a table of the operations of a qube beside other volumes."""
    sizes = measured["volumes"]
    empty, *_ = sizes
    *_, full = sizes
    lines = [
        f"Each of the other volumes has {measured['revisions']} revisions.",
        "",
        "| other volumes in the pool | " + " | ".join(sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for operation in sizes[full]:
        cells = []
        for size, costs in sizes.items():
            if operation not in costs:
                cells.append("")
                continue
            cost = costs[operation]
            if "bytes" in cost:
                cells.append(f"{cost['bytes'] / 1024:.0f} KiB")
                continue
            calls = f"{cost['calls']:.0f} call" + "s" * (cost["calls"] != 1)
            cell = f"{cost['seconds'] * 1000:.1f} ms, {calls}"
            first = sizes[empty].get(operation)
            if first and size != empty:
                cell += f", {times(cost['seconds'] / first['seconds'])}"
            cells.append(cell)
        lines.append(f"| {shown(operation)} | " + " | ".join(cells) + " |")
    return lines


def bulk_of(measured: dict[str, Any]) -> list[str]:
    """Return a table of copies between zpools."""
    lines = [
        f"A copy of {measured['MiB']} MiB, half of it zeroes.",
        "",
        "| way | seconds (least to most) | ratio to dd"
        " | start of a qube meanwhile | slowest start | page cache kept |",
        "|---|---|---|---|---|---|",
    ]
    ways = measured["ways"]

    def middle(way: str, kind: str) -> float:
        return statistics.median(item[kind] for item in ways[way])

    for way, items in ways.items():
        times = [item["seconds"] for item in items]
        lines.append(
            f"| {way} | {middle(way, 'seconds'):.1f}"
            f" ({min(times):.1f} to {max(times):.1f})"
            f" | {middle(way, 'seconds') / middle('dd', 'seconds'):.2f} x"
            f" | {middle(way, 'start') * 1000:.0f} ms"
            f" | {max(item['slowest start'] for item in items) * 1000:.0f} ms"
            f" | {middle(way, 'cached'):.0%} |"
        )
    return lines


#: the key of a result -> its name in file names, its title and its table
KINDS = {
    "operations": ("operations", "Operations of a qube", operations_of),
    "volumes": ("scale", "A pool with many volumes", scale_of),
    "ways": ("bulk", "A copy between zpools", bulk_of),
}


def kind_of(measured: dict[str, Any]) -> str:
    (kind,) = KINDS.keys() & measured.keys()
    return kind


def main() -> int:
    if len(sys.argv) > 1:
        RESULTS.mkdir(exist_ok=True)
        measured = json.loads(Path(sys.argv[1]).read_text("ascii"))
        version = measured["machine"]["openzfs"].partition("-")[0]
        clock = measured["machine"]["clock"]
        name, _, _ = KINDS[kind_of(measured)]
        shutil.copy(sys.argv[1], RESULTS / f"{name}-{version}-{clock}.json")
    parts = [HEAD]
    results = [
        (file, json.loads(file.read_text("ascii")))
        for file in sorted(RESULTS.glob("*.json"), reverse=True)
    ]
    # in the order of KINDS, the newest version of each first
    results.sort(key=lambda result: list(KINDS).index(kind_of(result[1])))
    for file, measured in results:
        _, title, lines = KINDS[kind_of(measured)]
        version = measured["machine"]["openzfs"].partition("-")[0]
        parts += [
            f"## {title} (OpenZFS {version})",
            "",
            f"From `benchmarks/results/{file.name}`. "
            + about(measured["machine"]),
            *lines(measured),
            "",
        ]
    PAGE.write_text("\n".join(parts), "utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
