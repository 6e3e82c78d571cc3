"""Forget a pool's key now, or say who still holds it."""

import argparse
import sys

from ..sentences import reason
from ..zfs import keys
from ..zfs.errors import Busy, Locked
from .common import ENCRYPTED, Failed, Pool, encrypted_pool, on_disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("pool", metavar="POOL", nargs="?")
    which.add_argument(
        "--all", action="store_true", help="the keys of all pools"
    )


async def run(given: argparse.Namespace) -> int:
    if not given.all:
        return await _lock(await encrypted_pool(given.pool))
    pools = [pool for pool in await on_disk() if pool.driver == ENCRYPTED]
    if not pools:
        raise Failed("there is no encrypted pool")
    return max([await _lock(pool) for pool in pools])


async def _lock(pool: Pool) -> int:
    try:
        await keys.unload(pool.dataset)
    except Locked:
        print(f"{pool.name} is locked already.")
    except Busy as exc:
        print(f"qvm-zfs lock: {pool.name}: {reason(exc)}", file=sys.stderr)
        return 1
    else:
        print(f"{pool.name} is locked.")
    return 0
