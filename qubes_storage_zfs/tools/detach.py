# SPDX-License-Identifier: BSD-2-Clause
"""Export the zpool of a pool, so that its disk can be taken away."""

import argparse
import asyncio
from collections.abc import Iterator, Sequence

from ..store import messages, policy
from ..store.container import Container
from ..zfs import devices, importexport, keys, lzc
from ..zfs.errors import (
    Busy,
    CommandFailed,
    Locked,
    NoPassphrase,
    PoolAbsent,
)
from .common import App, Failed, Pool, qubesd, slow
from .output import say, warn
from .pools import survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("pool", metavar="POOL")


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    app = qubesd()
    pools = await survey(app)
    pool = pools.named(arguments.pool)
    zpool = pool.zpool
    if importexport.guid(zpool) is None:
        say(f"{pool.name} is detached already.")
        return 0
    mates = [
        mate
        for mate in pools.pools
        if mate.zpool == zpool and (mate.is_configured or mate is pool)
    ]
    async with slow(f"Looking who uses {zpool}"):
        users = [
            *_qubes(app, mates),
            *await _reserved(mates),
            *await _open(zpool),
        ]
    if users:
        raise Failed(messages.POOL_IN_USE, zpool=zpool, users="; ".join(users))
    async with slow(f"Checking {zpool}"):
        await _warn_of_changes(mates)
    disks = await importexport.disks(zpool)
    async with slow(f"Exporting {zpool}"):
        await _lock(mates)
        await _export(zpool)
    also = ", ".join(mate.name for mate in mates if mate.name != pool.name)
    say(f"{pool.name} is detached{', and with it ' + also if also else ''}.")
    for disk in disks:
        name = disk.removeprefix("/dev/mapper/")
        if name != disk:
            say(f"Close its device: 'sudo cryptsetup close {name}'.")
    return 0


async def _warn_of_changes(mates: Sequence[Pool]) -> None:
    """Print which pools would not be attached again as they are now."""
    for pool in mates:
        try:
            await policy.check(pool.place)
        except (policy.Refused, NoPassphrase) as exc:
            why = messages.reason(exc)
            warn(messages.NOT_ATTACHED_AGAIN.format(pool=pool.name, why=why))


def _qubes(app: App, mates: Sequence[Pool]) -> Iterator[str]:
    """Yield the qubes that run from the pools, or are starting."""
    names = {pool.name for pool in mates}
    for qube in app.domains if app is not None else ():
        if qube.klass == "AdminVM" or qube.is_halted():
            continue
        if any(volume.pool in names for volume in qube.volumes.values()):
            yield f"the qube {qube.name} runs"


async def _reserved(mates: Sequence[Pool]) -> list[str]:
    """Return exports and imports of other processes, which are qubesd's."""
    texts = []
    for pool in mates:
        store = Container.at(pool.dataset, pool.qubes_root)
        for dataset in await store.reserved_elsewhere():
            texts.append(f"an export or import has {dataset} in hand")
    return texts


async def _open(zpool: str) -> list[str]:
    """Return what is mounted or open, for longer than udev probes it."""
    end = asyncio.get_running_loop().time() + devices.PROBE_LIMIT
    while True:
        places = [f"{at} is mounted" for at in importexport.mounted(zpool)]
        holders = await lzc.in_thread(zpool, keys.open_zvols, zpool)
        texts = [
            f"{dataset} is held by {', '.join(names)}"
            for dataset, names in sorted(holders.items())
        ]
        if not texts or asyncio.get_running_loop().time() > end:
            return places + texts
        await asyncio.sleep(0.25)


async def _lock(mates: Sequence[Pool]) -> None:
    for pool in mates:
        if pool.is_encrypted:
            try:
                await keys.unload(pool.dataset)
            except (Locked, PoolAbsent):
                pass
            except Busy as exc:
                raise Failed(messages.reason(exc)) from exc


async def _export(zpool: str) -> None:
    try:
        await importexport.export_zpool(zpool)
    except CommandFailed as exc:
        users = await _open(zpool)
        reason = "; ".join(users) or messages.reason(exc)
        raise Failed(messages.ZPOOL_STAYS, zpool=zpool, reason=reason) from exc
