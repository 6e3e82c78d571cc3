"""Export the zpool of a pool, so that its disk can be taken away."""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from ..store import messages, policy
from ..store.container import Container
from ..zfs import devices, importexport, keys, lzc
from ..zfs.errors import (
    Busy,
    CommandFailed,
    Locked,
    NoPassphrase,
    PoolAbsent,
    ZfsError,
)
from .common import ENCRYPTED, Failed, Pool, qubesd, slow
from .output import say, warn
from .pools import survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL")


async def run(given: argparse.Namespace) -> int:
    app = qubesd()
    found = await survey(app)
    pool = found.named(given.pool)
    zpool = pool.zpool
    if importexport.guid(zpool) is None:
        say(f"{pool.name} is detached already.")
        return 0
    mates = [
        each
        for each in found.pools
        if each.zpool == zpool and (each.is_configured or each is pool)
    ]
    async with slow(f"Looking who uses {zpool}"):
        users = [
            *_qubes(app, mates),
            *await _in_hand(mates),
            *await _open(zpool),
        ]
    if users:
        why = messages.POOL_IN_USE.format(zpool=zpool, users="; ".join(users))
        raise Failed(why)
    async with slow(f"Checking {zpool}"):
        await _warn_of_changes(mates)
    disks = await importexport.disks(zpool)
    async with slow(f"Exporting {zpool}"):
        await _lock(mates)
        await _give_back(zpool)
    also = ", ".join(each.name for each in mates if each.name != pool.name)
    say(f"{pool.name} is detached{', and with it ' + also if also else ''}.")
    for disk in disks:
        name = disk.removeprefix("/dev/mapper/")
        if name != disk:
            say(f"Close its device: 'sudo cryptsetup close {name}'.")
    return 0


async def _warn_of_changes(mates: Sequence[Pool]) -> None:
    """Say which pools would not be attached again as they are now."""
    for pool in mates:
        try:
            await policy.check(pool.place)
        except (policy.Refused, NoPassphrase) as exc:
            why = messages.reason(exc) if isinstance(exc, ZfsError) else exc
            warn(messages.NOT_ATTACHED_AGAIN.format(pool=pool.name, why=why))


def _qubes(app: Any, mates: Sequence[Pool]) -> Iterator[str]:
    """The qubes that run from the pools, or are about to."""
    names = {pool.name for pool in mates}
    for qube in app.domains if app is not None else ():
        if qube.klass == "AdminVM" or qube.is_halted():
            continue
        if any(volume.pool in names for volume in qube.volumes.values()):
            yield f"the qube {qube.name} runs"


async def _in_hand(mates: Sequence[Pool]) -> list[str]:
    """Exports and imports that another process, qubesd mostly, has begun."""
    found = []
    for pool in mates:
        store = Container.at(pool.dataset, pool.home)
        for dataset in await store.in_hand_elsewhere():
            found.append(f"an export or import has {dataset} in hand")
    return found


async def _open(zpool: str) -> list[str]:
    """What is mounted or open, for longer than udev looks at it."""
    end = asyncio.get_running_loop().time() + devices.GLANCE_LIMIT
    while True:
        places = [f"{at} is mounted" for at in importexport.mounted(zpool)]
        held = await lzc.in_thread(zpool, keys.users, zpool)
        found = [
            f"{dataset} is held by {', '.join(names)}"
            for dataset, names in sorted(held.items())
        ]
        if not found or asyncio.get_running_loop().time() > end:
            return places + found
        await asyncio.sleep(0.25)


async def _lock(mates: Sequence[Pool]) -> None:
    for pool in mates:
        if pool.driver == ENCRYPTED:
            try:
                await keys.unload(pool.dataset)
            except (Locked, PoolAbsent):
                pass
            except Busy as exc:
                raise Failed(messages.reason(exc)) from exc


async def _give_back(zpool: str) -> None:
    try:
        await importexport.give_back(zpool)
    except CommandFailed as exc:
        users = await _open(zpool)
        reason = "; ".join(users) or messages.reason(exc)
        raise Failed(
            messages.ZPOOL_STAYS.format(zpool=zpool, reason=reason)
        ) from exc
