# SPDX-License-Identifier: BSD-2-Clause
"""Whether a pool with many volumes is slower than an empty one.

    python3 -m benchmarks.scale [--volumes N] [--revisions N] [--clock CLOCK]
                                [--out FILE]

A qube lives in an empty pool, in the same one with others beside it, and so
on; what it costs is measured each time.  The others' volumes have no nodes:
making those is udev's work and not what is measured.
"""

import asyncio
import gc
import statistics
import sys
import time
import tracemalloc
import types
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libzfs_core

from qubes_storage_zfs import ZfsZvolPool
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.zfs import commands, runtime
from tests.support.background import afterwards, be_patient
from tests.support.counting import Cost, cost, now, quiet, rest
from tests.support.zpools import sh

from .common import DISKS, MIB, begin, parser, save, write
from .contenders import Driver, OnZpool

ZPOOL = "ours"
#: changes in one program, which holds up the transaction group it is in
AT_ONCE = 200
ROUNDS = 5
#: of many volumes, those whose verbs are called to see what memory it takes
USED = 50

_CHANGES = b"""
local given = (...).argv
for _, item in pairs(given.snapshots) do
    assert(zfs.sync.snapshot(item) == 0)
end
for qube, value in pairs(given.pointers) do
    assert(zfs.sync.set_prop(qube, given.property, value) == 0)
end
"""


def _run(**arguments: Any) -> None:
    libzfs_core.lzc_channel_program(
        ZPOOL.encode(), _CHANGES, 100_000_000, 100 << 20, _bytes(arguments)
    )


def _bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {_bytes(key): _bytes(each) for key, each in value.items()}
    if isinstance(value, list):
        return {b"%d" % n: _bytes(each) for n, each in enumerate(value)}
    return value.encode()


def fill(qubes_root: str, first: int, last: int, revisions: int) -> None:
    """Qubes with a private volume each, and what was committed of it."""
    given = {b"volsize": 64 * MIB, b"volblocksize": 16384}

    def make(number: int) -> str:
        qube = f"{qubes_root}/other{number}"
        volume = f"{qube}/private"
        libzfs_core.lzc_create(qube.encode(), "zfs", {b"canmount": 0})
        libzfs_core.lzc_create(volume.encode(), "zvol", given)
        return volume

    # many share a transaction group; none gets a device
    inhibit = Path(commands.INHIBIT)
    inhibit.write_text("1")
    try:
        with ThreadPoolExecutor(24) as threads:
            volumes = list(threads.map(make, range(first, last)))
    finally:
        inhibit.write_text("0")
    names = [
        (volume, f"{volume}@r{revision}")
        for revision in range(1, revisions + 1)
        for volume in volumes
    ]
    # a volume gets one snapshot in a transaction group
    step = min(AT_ONCE, len(volumes))
    for at in range(0, len(names), step):
        _run(
            snapshots=[name for _, name in names[at : at + step]],
            pointers={},
            property="-",
        )
    for at in range(0, len(volumes), AT_ONCE):
        some = volumes[at : at + AT_ONCE]
        for name, value in (
            (naming.POINTER, "0"),
            (naming.COMMITTED, f"private@r{revisions}"),
        ):
            _run(
                snapshots=[],
                pointers={each.rpartition("/")[0]: value for each in some},
                property=name + "private",
            )


async def timed(work: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    rest(ZPOOL)
    # what is known until the loop goes on is not what is measured
    await asyncio.sleep(0)
    with cost(ZPOOL) as spent:
        await work()
    return told(spent)


def told(spent: Cost) -> dict[str, Any]:
    return {
        "seconds": spent.seconds,
        "txgs": spent.txgs,
        "calls": len(spent.calls),
    }


async def lives(contender: Driver) -> dict[str, Any]:
    """Medians of what a qube's verbs take."""
    found: dict[str, list[dict[str, Any]]] = {}

    async def verb(name: str, work: Callable[[], Awaitable[object]]) -> None:
        found.setdefault(name, []).append(await timed(work))

    await contender.create("qube")
    private = contender.qubes["qube"]["private"]
    for number in range(ROUNDS + 1):
        if number == 1:
            # what was measured before was the first time, and is another
            found.clear()
        await verb("start", lambda: contender.start("qube"))
        for path in contender.paths("qube"):
            write(path)
        await verb("stop", lambda: contender.stop("qube"))
        await verb("after a stop", afterwards)
        await verb("revisions", now(lambda: private.revisions))
        await verb("usage", now(lambda: private.usage))
        await verb("revert", private.revert)
        await private.stop()
    store = contender.store
    for _ in range(ROUNDS):
        await verb("pool size and usage", contender.pool)
        await verb("list all volumes", now(store.list_volumes))
    await contender.remove("qube")
    return {
        name: {
            kind: statistics.median(each[kind] for each in items)
            for kind in items[0]
        }
        for name, items in found.items()
    }


def restarted(contender: Driver) -> ZfsZvolPool:
    """The pool of a qubesd that has just begun."""
    runtime.restart()
    return ZfsZvolPool(name=contender.store.name, **contender.options)


def made(pool: ZfsZvolPool, volumes: int) -> list[Any]:
    """What qubesd makes of qubes.xml when it starts."""
    return [
        pool.init_volume(
            types.SimpleNamespace(name=f"other{number}", app=None),
            {
                "name": "private",
                "pool": pool.name,
                "vid": f"other{number}/private",
                "size": str(64 * MIB),
                "rw": True,
                "save_on_stop": True,
            },
        )
        for number in range(volumes)
    ]


async def memory(contender: Driver, volumes: int) -> dict[str, Any]:
    """What the volumes' objects take, and what is added by using them."""
    pool = restarted(contender)
    tracemalloc.start()
    every = made(pool, volumes)
    gc.collect()
    begun, _ = tracemalloc.get_traced_memory()
    pool.list_volumes()
    for volume in every[:USED]:
        await volume.stop()
        assert volume.revisions
    gc.collect()
    then, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "memory, all made": {"bytes": begun},
        f"memory, then listed and {USED} stopped": {"bytes": then},
    }


async def first_use(contender: Driver, volumes: int) -> dict[str, Any]:
    """What qubesd does when it starts: all volumes are made, one is used."""
    pool = restarted(contender)
    with cost(ZPOOL) as spent:
        every = made(pool, volumes)
    first = await timed(lambda: pool.first_use())
    one = await timed(every[0].stop)
    return {
        "init of all": told(spent),
        "first use": first,
        "stop of one that did not run": one,
        **await memory(contender, volumes),
    }


async def polls(contender: Driver, volumes: int) -> dict[str, Any]:
    """What the disk space widget has qubesd do each minute: for all pools,
    and for all volumes, of which none runs."""
    pool = restarted(contender)
    every = made(pool, volumes)

    def poll() -> None:
        assert pool.size and pool.usage and pool.usage_details
        for volume in every:
            assert volume.usage and volume.path

    first = await timed(now(poll))
    assert pool.space.counting is not None
    await pool.space.counting
    return {
        "first poll of all": first,
        "a poll of all": await timed(now(poll)),
        "count of what revisions hold": await timed(pool.space.count),
    }


async def run(sizes: list[int], revisions: int) -> dict[str, Any]:
    contender = OnZpool("zfs_zvol", ZfsZvolPool, {"container": "ours/qubes"})
    await contender.setup(DISKS[0])
    qubes_root = contender.store.qubes_root
    results: dict[str, Any] = {}
    there = 0
    for size in sizes:
        since = time.monotonic()
        for at in range(there, size, 200):
            end = min(at + 200, size)
            fill(qubes_root, at, end, revisions)
            took = time.monotonic() - since
            print(f"scale: {end} in {took:.0f} s", flush=True)
        there = size
        results[str(size)] = await lives(contender)
        if size:
            results[str(size)] |= await first_use(contender, size)
            results[str(size)] |= await polls(contender, size)
        print(f"scale: {size} volumes measured", flush=True)
    return results


def main() -> int:
    be_patient()
    command = parser(__doc__, "scale", volumes=2000, revisions=10)
    given = command.parse_args()
    begin()
    sizes = [0, given.volumes // 10, given.volumes]
    with quiet():
        found = asyncio.run(run(sizes, given.revisions))
    save(given, {"revisions": given.revisions, "volumes": found})
    sh("zpool", "destroy", "-f", ZPOOL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
