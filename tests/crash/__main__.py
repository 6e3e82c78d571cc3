# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest, with a zpool of its own in memory."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from ..support.zpools import create_zpool, sectors
from .enumerate import WORLDS, run, sequences
from .links import Links

ZPOOL = "crash"
SIZE = 1 << 30  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.crash", description=__doc__)
    parser.add_argument("--depth", type=int, default=3, help="verbs in a row")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1e9,
        help="for each world, from when it is set up",
    )
    parser.add_argument(
        "--worlds",
        type=int,
        choices=range(1, len(WORLDS) + 1),
        default=len(WORLDS),
        help="tried side by side",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        help="1/2 and 2/2: half of that order each, for two guests",
    )
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="so many of that order or part, which an earlier run began",
    )
    parser.add_argument("--only", help="one sequence, verbs with commas")
    parser.add_argument(
        "--encrypted", action="store_true", help="the driver zfs_encrypted"
    )
    given = parser.parse_args()
    todo = [item for item in sequences() if len(item) <= given.depth]
    if given.only:
        todo = [tuple(given.only.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disk"
        create_zpool(ZPOOL, disk, SIZE, sectors())
        begin = time.monotonic()
        with Links():
            tally = run(
                folder,
                ZPOOL,
                todo,
                worlds=given.worlds,
                seconds=given.seconds,
                seed=given.seed,
                part=given.part,
                skip=given.skip,
                encrypted=given.encrypted,
            )
        print(f"seed {given.seed}, {time.monotonic() - begin:.0f} s: {tally}")
        print("calls:", dict(tally.calls))
        for violation in tally.violations:
            print(violation)
        sys.stdout.flush()
        # what a violation left open would hold up an export for ever
        os._exit(1 if tally.violations or not tally.points else 0)


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(text)
    return int(number), int(parts)


if __name__ == "__main__":
    sys.exit(main())
