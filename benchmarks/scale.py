# SPDX-License-Identifier: BSD-2-Clause
"""Measure whether a pool with many volumes is slower than an empty one.

    python3 -m benchmarks.scale [--volumes N] [--revisions N] [--clock CLOCK]
                                [--out FILE]

The operations of a qube are measured in an empty pool, and again in the same
pool with other volumes beside it.  The other volumes have no device nodes,
because making these is work of udev, which is not measured.
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

from .common import DISKS, MIB, parser, save, set_state_folder, write
from .contenders import Driver, OnZpool

ZPOOL = "ours"
#: changes in one program, because a program delays its transaction group
AT_ONCE = 200
ROUNDS = 5
#: number of volumes whose operations are called to measure their memory
USED = 50

_CHANGES = b"""
local argv = (...).argv
for _, item in pairs(argv.snapshots) do
    assert(zfs.sync.snapshot(item) == 0)
end
for qube, value in pairs(argv.pointers) do
    assert(zfs.sync.set_prop(qube, argv.property, value) == 0)
end
"""


def _run(**arguments: Any) -> None:
    libzfs_core.lzc_channel_program(
        ZPOOL.encode(), _CHANGES, 100_000_000, 100 << 20, _bytes(arguments)
    )


def _bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {_bytes(key): _bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return {b"%d" % n: _bytes(item) for n, item in enumerate(value)}
    return value.encode()


def fill(qubes_root: str, first: int, last: int, revisions: int) -> None:
    """Create qubes with a private volume each and its revisions."""
    properties = {b"volsize": 64 * MIB, b"volblocksize": 16384}

    def make(number: int) -> str:
        qube = f"{qubes_root}/other{number}"
        volume = f"{qube}/private"
        libzfs_core.lzc_create(qube.encode(), "zfs", {b"canmount": 0})
        libzfs_core.lzc_create(volume.encode(), "zvol", properties)
        return volume

    # many creations share a transaction group, and no device node is made
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
    # ZFS makes one snapshot of a volume in a transaction group
    step = min(AT_ONCE, len(volumes))
    for at in range(0, len(names), step):
        _run(
            snapshots=[name for _, name in names[at : at + step]],
            pointers={},
            property="-",
        )
    for at in range(0, len(volumes), AT_ONCE):
        part = volumes[at : at + AT_ONCE]
        for name, value in (
            (naming.POINTER, "0"),
            (naming.COMMITTED, f"private@r{revisions}"),
        ):
            _run(
                snapshots=[],
                pointers={item.rpartition("/")[0]: value for item in part},
                property=name + "private",
            )


async def timed(work: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    rest(ZPOOL)
    # an answer that is reused until the loop continues must not be measured
    await asyncio.sleep(0)
    with cost(ZPOOL) as spent:
        await work()
    return summary(spent)


def summary(spent: Cost) -> dict[str, Any]:
    return {
        "seconds": spent.seconds,
        "txgs": spent.txgs,
        "calls": len(spent.calls),
    }


async def measure_qube(contender: Driver) -> dict[str, Any]:
    """Return medians of the costs of a qube's operations."""
    results: dict[str, list[dict[str, Any]]] = {}

    async def operation(
        name: str, work: Callable[[], Awaitable[object]]
    ) -> None:
        results.setdefault(name, []).append(await timed(work))

    await contender.create("qube")
    private = contender.qubes["qube"]["private"]
    for number in range(ROUNDS + 1):
        if number == 1:
            # the first time differs, and is not counted
            results.clear()
        await operation("start", lambda: contender.start("qube"))
        for path in contender.paths("qube"):
            write(path)
        await operation("stop", lambda: contender.stop("qube"))
        await operation("after a stop", afterwards)
        await operation("revisions", now(lambda: private.revisions))
        await operation("usage", now(lambda: private.usage))
        await operation("revert", private.revert)
        await private.stop()
    store = contender.store
    for _ in range(ROUNDS):
        await operation("pool size and usage", contender.pool)
        await operation("list all volumes", now(store.list_volumes))
    await contender.remove("qube")
    return {
        name: {
            kind: statistics.median(item[kind] for item in items)
            for kind in items[0]
        }
        for name, items in results.items()
    }


def restarted_pool(contender: Driver) -> ZfsZvolPool:
    """Return the pool object of a qubesd that has just started."""
    runtime.restart()
    return ZfsZvolPool(name=contender.store.name, **contender.options)


def create_objects(pool: ZfsZvolPool, volumes: int) -> list[Any]:
    """Return volume objects as qubesd makes them from qubes.xml."""
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
    """Measure the memory of volume objects, before and after their use."""
    pool = restarted_pool(contender)
    tracemalloc.start()
    volumes_of_pool = create_objects(pool, volumes)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    pool.list_volumes()
    for volume in volumes_of_pool[:USED]:
        await volume.stop()
        assert volume.revisions
    gc.collect()
    then, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "memory, all made": {"bytes": before},
        f"memory, then listed and {USED} stopped": {"bytes": then},
    }


async def first_use(contender: Driver, volumes: int) -> dict[str, Any]:
    """Measure the start of qubesd: it makes all volumes, and uses one."""
    pool = restarted_pool(contender)
    with cost(ZPOOL) as spent:
        volumes_of_pool = create_objects(pool, volumes)
    first = await timed(lambda: pool.first_use())
    stop = await timed(volumes_of_pool[0].stop)
    return {
        "init of all": summary(spent),
        "first use": first,
        "stop of one that did not run": stop,
        **await memory(contender, volumes),
    }


async def measure_polls(contender: Driver, volumes: int) -> dict[str, Any]:
    """Measure what the disk space widget requests each minute.

    The widget asks for all pools and all volumes; no volume is in use.
    """
    pool = restarted_pool(contender)
    volumes_of_pool = create_objects(pool, volumes)

    def poll() -> None:
        assert pool.size and pool.usage and pool.usage_details
        for volume in volumes_of_pool:
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
    existing = 0
    for size in sizes:
        since = time.monotonic()
        for at in range(existing, size, 200):
            end = min(at + 200, size)
            fill(qubes_root, at, end, revisions)
            took = time.monotonic() - since
            print(f"scale: {end} in {took:.0f} s", flush=True)
        existing = size
        results[str(size)] = await measure_qube(contender)
        if size:
            results[str(size)] |= await first_use(contender, size)
            results[str(size)] |= await measure_polls(contender, size)
        print(f"scale: {size} volumes measured", flush=True)
    return results


def main() -> int:
    be_patient()
    command = parser(__doc__, "scale", volumes=2000, revisions=10)
    options = command.parse_args()
    set_state_folder()
    sizes = [0, options.volumes // 10, options.volumes]
    with quiet():
        results = asyncio.run(run(sizes, options.revisions))
    save(options, {"revisions": options.revisions, "volumes": results})
    sh("zpool", "destroy", "-f", ZPOOL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
