"""Load a pool's key; the passphrase comes from the terminal or stdin."""

import argparse

from ..zfs import keys
from .common import Terminal, encrypted_pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL")


async def run(given: argparse.Namespace) -> int:
    pool = await encrypted_pool(given.pool)
    if (await keys.state(pool.dataset)).loaded:
        print(f"{pool.name} is unlocked already.")
        return 0
    await keys.load(pool.dataset, Terminal(pool.name))
    print(f"{pool.name} is unlocked.")
    return 0
