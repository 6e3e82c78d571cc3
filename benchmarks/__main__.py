"""Measures all contenders, in the guest; what came out goes to a file.

    python3 -m benchmarks [--rounds N] [--out FILE]

Each round runs each verb once for each contender, one contender after the
other, so that whatever the machine does meanwhile meets all of them alike.
Times are those of the guest's clock, see VM_CLOCK in doc/testing.md.
"""

import argparse
import asyncio
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import qubes.storage

from qubes_storage_zfs import ZfsZvolPool
from tests.counting import Forks, calls, quiet, settled, txg

from .contenders import MIB, Contender, Driver, OnFiles, OnThinPool, OnZpool
from .peers import Files, ThinCommands, ZfsCommands

DISKS = [f"/dev/vd{letter}" for letter in "bcdefghijk"]
WRITTEN = MIB


def contenders() -> list[Contender]:
    """Ourselves, the peers' ways, and the peers where they are at hand."""
    every: list[Contender] = [
        OnZpool("zfs_zvol", ZfsZvolPool, {"container": "ours/qubes"}),
        ZfsCommands("commands"),
        ThinCommands("thin"),
        Files("xfs"),
        Files("btrfs"),
    ]
    if "QUBES_CORE_ADMIN" in os.environ:
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


def rest(contender: Contender) -> None:
    """Until udev and ZFS have nothing to do any more."""
    subprocess.run(["udevadm", "settle"], check=True)
    if contender.zpool:
        settled(contender.zpool)


async def measure(
    contender: Contender, work: Callable[[], Awaitable[None]], into: Measured
) -> None:
    rest(contender)
    with ExitStack() as stack:
        forks = stack.enter_context(Forks())
        made = stack.enter_context(calls())
        before = txg(contender.zpool) if contender.zpool else 0
        begin = time.monotonic()
        await work()
        into.times.append(time.monotonic() - begin)
        if contender.zpool:
            into.txgs.append(txg(contender.zpool) - before)
    assert forks.count is not None
    into.forks.append(forks.count)
    into.calls = sorted(made)
    rest(contender)


def write(path: str) -> None:
    """What a qube does, and what Xen does when it ends."""
    with open(path, "r+b") as file:
        file.write(os.urandom(WRITTEN))
        os.fsync(file)


async def life(
    contender: Contender, number: int, results: dict[str, Measured]
) -> None:
    """A qube's, each verb measured; a copy of it as well."""
    qube, copy = f"qube{number}", f"copy{number}"

    async def verb(name: str, work: Callable[[], Awaitable[None]]) -> None:
        await measure(contender, work, results[name])

    await verb("create", lambda: contender.create(qube))
    for _ in range(2):
        await verb("qube start", lambda: contender.start(qube))
        write(contender.private(qube))
        await verb("qube stop", lambda: contender.stop(qube))
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
    return {
        name: {verb: vars(measured) for verb, measured in verbs.items()}
        for name, verbs in results.items()
    }


def machine() -> dict[str, str]:
    version = Path("/sys/module/zfs/version").read_text("ascii").strip()
    core_admin = Path(qubes.storage.__file__).parents[2] / "version"
    return {
        "openzfs": version,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "core-admin": (
            core_admin.read_text("ascii").strip() if core_admin.exists() else ""
        ),
        "clock": os.environ.get("VM_CLOCK", "wall"),
        "cpu": os.environ.get("VM_CPU", ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="/out/bench.json")
    given = parser.parse_args()
    qubes.storage.VOLUME_STATE_DIR = "/run/qubes/storage"
    with quiet():
        found = asyncio.run(run(given.rounds))
    text = json.dumps({"machine": machine(), "verbs": found}, indent=1)
    Path(given.out).write_text(text + "\n", "ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
