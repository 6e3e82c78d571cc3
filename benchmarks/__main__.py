# SPDX-License-Identifier: BSD-2-Clause
"""Measures all contenders, in the guest; what came out goes to a file.

    python3 -m benchmarks [--rounds N] [--clock CLOCK] [--out FILE]

Each round runs each verb once for each contender, one contender after the
other, so that whatever the machine does meanwhile meets all of them alike.
Times are those of the guest's clock, see VM_CLOCK in doc/testing.md.
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

from .common import DISKS, begin, parser, save, write
from .contenders import Contender, Driver, OnFiles, OnThinPool, OnZpool
from .peers import Files, ThinCommands, ZfsCommands


def contenders() -> list[Contender]:
    """Ourselves, the peers' ways, and the peers where they are at hand."""
    every: list[Contender] = [
        OnZpool("zfs_zvol", ZfsZvolPool, {"container": "ours/qubes"}),
        ZfsCommands("commands"),
        ThinCommands("thin"),
        Files("xfs"),
        Files("btrfs"),
    ]
    if core_admin_version():
        every += real_peers()
    return every


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
    """What one verb cost one contender, a list with an item for each round."""

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


async def life(
    contender: Contender, number: int, results: dict[str, Measured]
) -> None:
    """A qube's, each verb measured; a copy of it as well."""
    qube, copy = f"qube{number}", f"copy{number}"

    async def verb(name: str, work: Callable[[], Awaitable[None]]) -> None:
        await measure(contender, work, results[name])

    await verb("create", lambda: contender.create(qube))
    for start in "qube's first start", "qube start", "qube start":
        await verb(start, lambda: contender.start(qube))
        for path in contender.paths(qube):
            write(path)
        await verb("qube stop", lambda: contender.stop(qube))
        await verb("after a stop", afterwards)
    await verb("revisions", lambda: contender.revisions(qube))
    await verb("usage", lambda: contender.usage(qube))
    await verb("pool size and usage", contender.pool)
    await verb("export", lambda: contender.export(qube))
    await contender.create(copy)
    await verb("clone", lambda: contender.clone(qube, copy))
    await contender.remove(copy)
    await verb("revert", lambda: contender.revert(qube))
    await verb("remove", lambda: contender.remove(qube))


async def run(rounds: int) -> dict[str, Any]:
    every = contenders()
    results: dict[str, dict[str, Measured]] = {}
    for contender, disk in zip(every, DISKS, strict=False):
        await contender.setup(disk)
        results[contender.name] = defaultdict(Measured)
        print(f"bench: {contender.name} is ready", flush=True)
    # the first round warms up caches, and is not counted
    for number in range(rounds + 1):
        for contender in every:
            into = results[contender.name] if number else defaultdict(Measured)
            await life(contender, number, into)
        print(f"bench: round {number} of {rounds}", flush=True)
    for contender in every:
        if contender.zpool:
            sh("zpool", "destroy", "-f", contender.zpool)
    return {
        name: {verb: vars(measured) for verb, measured in verbs.items()}
        for name, verbs in results.items()
    }


def main() -> int:
    be_patient()
    given = parser(__doc__, "bench", rounds=5).parse_args()
    begin()
    with quiet():
        found = asyncio.run(run(given.rounds))
    save(given, {"verbs": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
