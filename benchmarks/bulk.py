# SPDX-License-Identifier: BSD-2-Clause
"""Measure copies of a volume from one zpool to another, compared with dd.

    python3 -m benchmarks.bulk [--size MIB] [--rounds N] [--clock CLOCK]
                               [--out FILE]

Half of the volume is zeroes.  Meanwhile, a qube is started and stopped again
and again, and a file of dom0 is in the page cache.
"""

import asyncio
import ctypes
import mmap
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from qubes_storage_zfs import ZfsZvolPool
from tests.support.background import afterwards, be_patient
from tests.support.counting import rest
from tests.support.zpools import sh

from .common import DISKS, MIB, parser, save, set_state_folder
from .contenders import OnZpool
from .peers import run as program

RUN = 64 * MIB
CACHED = Path("/root/cached")


def fill(path: str, size: int) -> None:
    """Write runs of random data, with runs of zeroes between them."""
    with open(path, "r+b") as file:
        for offset in range(0, size, 2 * RUN):
            file.seek(offset)
            for _ in range(RUN // MIB):
                file.write(os.urandom(MIB))
        os.fsync(file)


def cached() -> float:
    """Return the fraction of a file that is still in the page cache."""
    size = CACHED.stat().st_size
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    with (
        open(CACHED, "rb") as file,
        mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped,
    ):
        first = ctypes.c_char.from_buffer(mapped)
        place = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None).mincore(place, ctypes.c_size_t(size), pages)
        del first
    assert not failed
    return sum(page & 1 for page in pages) / len(pages)


class Bulk:
    """Two pools, with a volume and a qube in the first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.first = OnZpool("a", ZfsZvolPool, {"container": "first/qubes"})
        self.second = OnZpool("b", ZfsZvolPool, {"container": "second/qubes"})
        self.number = 0

    async def setup(self) -> None:
        await self.first.setup(DISKS[0])
        await self.second.setup(DISKS[1])
        await self.first.create("qube")
        self.source = self.first._volume(
            "big", "private", self.size, save_on_stop=True
        )
        await self.source.create()
        fill(await self.source.import_data(self.size), self.size)
        await self.source.import_data_end(True)

    async def _target(self) -> Any:
        self.number += 1
        target = self.second._volume(
            f"copy{self.number}", "private", MIB, save_on_stop=True
        )
        await target.create()
        return target

    async def ours(self) -> None:
        target = await self._target()
        await target.import_volume(self.source)
        await target.remove()

    async def dd(self, *nice: str) -> None:
        """Copy as "qvm-volume import" does."""
        target = await self._target()
        source = await self.source.export()
        path = await target.import_data(self.size)
        await program(
            *(*nice, "dd", f"if={source}", f"of={path}", "bs=64M"),
            "conv=sparse,notrunc,nocreat,fdatasync",
        )
        await target.import_data_end(True)
        await self.source.export_end(source)
        await target.remove()

    async def measure(
        self, work: Callable[[], Awaitable[None]]
    ) -> dict[str, Any]:
        """Measure a copy, the starts of a qube meanwhile, and the page cache."""
        rest("first")
        rest("second")
        CACHED.read_bytes()
        begun = time.monotonic()
        task = asyncio.ensure_future(work())
        starts = []
        while not task.done():
            since = time.monotonic()
            await self.first.start("qube")
            starts.append(time.monotonic() - since)
            await self.first.stop("qube")
            await afterwards()
            await asyncio.wait([task], timeout=0.5)
        await task
        return {
            "seconds": time.monotonic() - begun,
            "start": statistics.median(starts),
            "slowest start": max(starts),
            "cached": cached(),
        }


async def measured(size: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    bulk = Bulk(size)
    await bulk.setup()
    CACHED.write_bytes(os.urandom(64 * MIB))
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "zfs_zvol": bulk.ours,
        "dd": bulk.dd,
        "ionice dd": lambda: bulk.dd("ionice", "-c3"),
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            results[name].append(await bulk.measure(way))
            print(f"bulk: {number}, {name}: {results[name][-1]}", flush=True)
    return results


def main() -> int:
    be_patient()
    options = parser(__doc__, "bulk", size=2048, rounds=3).parse_args()
    set_state_folder()
    results = asyncio.run(measured(options.size * MIB, options.rounds))
    save(options, {"MiB": options.size, "ways": results})
    for zpool in "first", "second":
        sh("zpool", "destroy", "-f", zpool)
    return 0


if __name__ == "__main__":
    sys.exit(main())
