# SPDX-License-Identifier: BSD-2-Clause
"""Measure all contenders in the guest; write the results to a file.

    python3 -m benchmarks [--rounds N] [--clock CLOCK] [--out FILE]

Each round runs each operation for one contender after the other, so that other
load of the machine affects all of them alike.  Times are those of the guest's
clock; see VM_CLOCK in doc/testing.md.
"""

import asyncio
import importlib
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from qubes_storage_zfs import ZfsZvolPool
from tests.support.background import afterwards, be_patient
from tests.support.counting import Forks, cost, quiet, rest
from tests.support.report import core_admin_version
from tests.support.zpools import sh

from .common import DISKS, parser, save, set_state_folder, write
from .contenders import Contender, Driver, OnFiles, OnThinPool, OnZpool
from .peers import Files, ThinCommands, ZfsCommands


def contenders() -> list[Contender]:
    """Return this driver, the peers' commands, and the peers if installed."""
    all_contenders: list[Contender] = [
        OnZpool("zfs_zvol", ZfsZvolPool, {"container": "ours/qubes"}),
        ZfsCommands("commands"),
        ThinCommands("thin"),
        Files("xfs"),
        Files("btrfs"),
    ]
    if core_admin_version():
        all_contenders += real_peers()
    return all_contenders


def real_peers() -> list[Driver]:
    storage = "qubes.storage"
    zfs = importlib.import_module(f"{storage}.zfs").ZFSPool
    thin = importlib.import_module(f"{storage}.lvm").ThinPool
    files = importlib.import_module(f"{storage}.reflink").ReflinkPool
    return [
        OnZpool("zfs", zfs, {"container": "theirs/qubes"}),
        OnThinPool(
            "lvm_thin", thin, {"volume_group": "real", "thin_pool": "pool"}
        ),
        OnFiles("file-reflink on xfs", files, "xfs"),
        OnFiles("file-reflink on btrfs", files, "btrfs"),
    ]


class Measured:
    """The costs of one operation of one contender, an item for each round."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.forks: list[int] = []
        self.txgs: list[int] = []
        self.calls: list[str] = []
        self.in_calls: list[float] = []


async def measure(
    contender: Contender, work: Callable[[], Awaitable[None]], into: Measured
) -> None:
    rest(contender.zpool)
    with Forks() as forks, cost(contender.zpool) as spent:
        await work()
    assert forks.count is not None
    into.forks.append(forks.count)
    into.times.append(spent.seconds)
    if spent.txgs is not None:
        into.txgs.append(spent.txgs)
    into.calls = spent.calls
    into.in_calls.append(spent.in_calls)
    rest(contender.zpool)


async def measure_qube(
    contender: Contender, number: int, results: dict[str, Measured]
) -> None:
    """Measure each operation of a qube, from create to remove."""
    qube, copy = f"qube{number}", f"copy{number}"

    async def operation(name: str, work: Callable[[], Awaitable[None]]) -> None:
        await measure(contender, work, results[name])

    await operation("create", lambda: contender.create(qube))
    for start in "qube's first start", "qube start", "qube start":
        await operation(start, lambda: contender.start(qube))
        for path in contender.paths(qube):
            write(path)
        await operation("qube stop", lambda: contender.stop(qube))
        await operation("after a stop", afterwards)
    await operation("revisions", lambda: contender.revisions(qube))
    await operation("usage", lambda: contender.usage(qube))
    await operation("pool size and usage", contender.pool)
    await operation("export", lambda: contender.export(qube))
    await contender.create(copy)
    await operation("clone", lambda: contender.clone(qube, copy))
    await contender.remove(copy)
    await operation("revert", lambda: contender.revert(qube))
    await operation("remove", lambda: contender.remove(qube))


async def run(rounds: int) -> dict[str, Any]:
    all_contenders = contenders()
    results: dict[str, dict[str, Measured]] = {}
    for contender, disk in zip(all_contenders, DISKS, strict=False):
        await contender.setup(disk)
        results[contender.name] = defaultdict(Measured)
        print(f"bench: {contender.name} is ready", flush=True)
    # the first round fills caches and is not counted
    for number in range(rounds + 1):
        for contender in all_contenders:
            into = results[contender.name] if number else defaultdict(Measured)
            await measure_qube(contender, number, into)
        print(f"bench: round {number} of {rounds}", flush=True)
    for contender in all_contenders:
        if contender.zpool:
            sh("zpool", "destroy", "-f", contender.zpool)
    return {
        name: {
            operation: vars(measured)
            for operation, measured in operations.items()
        }
        for name, operations in results.items()
    }


def main() -> int:
    be_patient()
    options = parser(__doc__, "bench", rounds=5).parse_args()
    set_state_folder()
    with quiet():
        results = asyncio.run(run(options.rounds))
    save(options, {"operations": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
