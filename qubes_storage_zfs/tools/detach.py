# SPDX-License-Identifier: BSD-2-Clause
"""Export the zpool of a pool, so that its disk can be removed.

detach unloads the keys of all pools in the zpool and exports the zpool.  It
refuses, and names the uses, while anything in the zpool is in use.
"""

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
    parser.add_argument(
        "pool",
        metavar="POOL",
        help="pool whose zpool is exported, together with all other pools in"
        " that zpool; their qubes cannot start until 'qvm-zfs attach'",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    app = qubesd()
    pools = await survey(app)
    pool = pools.named(arguments.pool)
    zpool = pool.zpool
    if importexport.guid(zpool) is None:
        say(f"{pool.name} is already detached")
        return 0
    all_pools = [
        other
        for other in pools.pools
        if other.zpool == zpool and (other.is_configured or other is pool)
    ]
    async with slow(f"Checking whether {zpool} is in use"):
        users = [
            *_qubes(app, all_pools),
            *await _reserved(all_pools),
            *await _open(zpool),
        ]
    if users:
        raise Failed(messages.POOL_IN_USE, zpool=zpool, users="; ".join(users))
    async with slow(f"Checking {zpool}"):
        await _warn_of_changes(all_pools)
    disks = await importexport.disks(zpool)
    async with slow(f"Exporting {zpool}"):
        await _lock(all_pools)
        await _export(zpool)
    also = ", ".join(
        other.name for other in all_pools if other.name != pool.name
    )
    say(f"{pool.name} is detached{', together with ' + also if also else ''}")
    for disk in disks:
        name = disk.removeprefix("/dev/mapper/")
        if name != disk:
            say(f"to close its LUKS device, run 'sudo cryptsetup close {name}'")
    return 0


async def _warn_of_changes(pools: Sequence[Pool]) -> None:
    """Print a warning for each pool that attach will refuse."""
    for pool in pools:
        try:
            await policy.check(pool.place)
        except (policy.Refused, NoPassphrase) as exc:
            why = messages.reason(exc)
            warn(messages.NOT_ATTACHED_AGAIN.format(pool=pool.name, why=why))


def _qubes(app: App, pools: Sequence[Pool]) -> Iterator[str]:
    """Yield a text for each qube with volumes in the pools that is not halted."""
    names = {pool.name for pool in pools}
    for qube in app.domains if app is not None else ():
        if qube.klass == "AdminVM" or qube.is_halted():
            continue
        if any(volume.pool in names for volume in qube.volumes.values()):
            yield f"the qube {qube.name} is running"


async def _reserved(pools: Sequence[Pool]) -> list[str]:
    """Return a text for each dataset of an export or import of qubesd."""
    texts = []
    for pool in pools:
        store = Container.at(pool.dataset, pool.qubes_root)
        for dataset in await store.reserved_elsewhere():
            texts.append(f"an export or import uses {dataset}")
    return texts


async def _open(zpool: str) -> list[str]:
    """Return a text for each mount, and each zvol open for longer than udev does."""
    end = asyncio.get_running_loop().time() + devices.PROBE_LIMIT
    while True:
        places = [f"{at} is mounted" for at in importexport.mounted(zpool)]
        holders = await lzc.in_thread(zpool, keys.open_zvols, zpool)
        texts = [
            f"{dataset} is in use by {', '.join(names)}"
            for dataset, names in sorted(holders.items())
        ]
        if not texts or asyncio.get_running_loop().time() > end:
            return places + texts
        await asyncio.sleep(0.25)


async def _lock(pools: Sequence[Pool]) -> None:
    """Unload the keys of the pools.

    :raises Failed: if a pool is in use
    """
    for pool in pools:
        if pool.is_encrypted:
            try:
                await keys.unload(pool.dataset)
            except (Locked, PoolAbsent):
                pass
            except Busy as exc:
                raise Failed(messages.reason(exc)) from exc


async def _export(zpool: str) -> None:
    """Export the zpool.

    :raises Failed: with the uses that were found, if ZFS refuses
    """
    try:
        await importexport.export_zpool(zpool)
    except CommandFailed as exc:
        users = await _open(zpool)
        reason = "; ".join(users) or messages.reason(exc)
        raise Failed(messages.ZPOOL_STAYS, zpool=zpool, reason=reason) from exc
