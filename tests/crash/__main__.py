# SPDX-License-Identifier: BSD-2-Clause
"""Run the crash tests in the guest, on a zpool of their own in memory."""

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
    parser.add_argument(
        "--depth", type=int, default=3, help="operations in a row"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1e9,
        help="after this time a world starts no other sequence",
    )
    parser.add_argument(
        "--worlds",
        type=int,
        choices=range(1, len(WORLDS) + 1),
        default=len(WORLDS),
        help="how many worlds try sequences at the same time",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        help="1/2 or 2/2: half of the sequences, for two guests",
    )
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="leave out so many first sequences, which an earlier run did",
    )
    parser.add_argument("--only", help="one sequence, operations with commas")
    parser.add_argument(
        "--encrypted", action="store_true", help="the driver zfs_encrypted"
    )
    options = parser.parse_args()
    todo = [item for item in sequences() if len(item) <= options.depth]
    if options.only:
        todo = [tuple(options.only.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disk"
        create_zpool(ZPOOL, disk, SIZE, sectors())
        start = time.monotonic()
        with Links():
            tally = run(
                folder,
                ZPOOL,
                todo,
                worlds=options.worlds,
                seconds=options.seconds,
                seed=options.seed,
                part=options.part,
                skip=options.skip,
                encrypted=options.encrypted,
            )
        print(f"seed {options.seed}, {time.monotonic() - start:.0f} s: {tally}")
        print("calls:", dict(tally.calls))
        for violation in tally.violations:
            print(violation)
        sys.stdout.flush()
        # an open device that a violation left would block the export
        os._exit(1 if tally.violations or not tally.points else 0)


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(text)
    return int(number), int(parts)


if __name__ == "__main__":
    sys.exit(main())
