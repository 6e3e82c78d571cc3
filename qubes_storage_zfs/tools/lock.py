# SPDX-License-Identifier: BSD-2-Clause
"""Unload the key of an encrypted pool, or of all pools.

lock refuses, and names the uses, while a volume in the pool is in use.  After
that, qubes in the pool need the passphrase to start.
"""

import argparse
import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..store import messages
from ..store.messages import reason
from ..store.pool_programs import ClaimedDataset
from ..zfs import keys
from ..zfs.errors import Locked, NotFound, PoolAbsent, ZfsError
from ..zfs.text import SHOWN, printable
from .common import Failed, Pool, configured, qubesd
from .output import say, warn
from .pools import (
    check_zpool,
    encrypted_pool,
    is_supported,
    survey_disks,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    name = parser.add_mutually_exclusive_group(required=True)
    name.add_argument(
        "pool", metavar="POOL", nargs="?", help="encrypted pool to lock"
    )
    name.add_argument(
        "--all",
        action="store_true",
        help="lock all pools of qubesd, and all encryption roots on imported"
        " zpools that are marked as a pool's; continue after a failure, and"
        " exit with status 1 then",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    if arguments.all:
        return await _lock_all()
    pool = await encrypted_pool(arguments.pool, secret=False)
    await _lock(pool.name, pool.dataset)
    return 0


async def _lock_all() -> int:
    """Lock all pools, configured or not, and continue after a failure.

    Configured pools are locked first and at the same time, so that a zpool that
    does not respond delays no other configured pool.
    """
    failures, pools = [], list[Pool]()
    try:
        pools = configured(qubesd())
    except Failed as exc:
        warn(f"qvm-zfs lock: {exc}")
        failures.append(str(exc))
    steps = [
        partial(_lock_configured, pool) for pool in pools if pool.is_encrypted
    ]
    failures += await _at_once(steps)
    survey = await survey_disks(pools)
    for text in survey.unread:
        warn(f"qvm-zfs lock: {text}")
    failures += survey.unread
    others = [
        partial(_lock_unconfigured, mark)
        for mark in survey.unconfigured_roots()
    ]
    failures += await _at_once(others)
    if not steps and not others and not failures:
        raise Failed(messages.NO_ENCRYPTED_POOL)
    return 1 if failures else 0


async def _at_once(
    steps: Sequence[Callable[[], Awaitable[None]]],
) -> list[str]:
    """Run *steps* at the same time; print and return the failures."""
    outcomes = await asyncio.gather(*map(_outcome, steps))
    return [text for text in outcomes if text is not None]


async def _outcome(step: Callable[[], Awaitable[None]]) -> str | None:
    """Run a step; print and return its failure, or return None."""
    try:
        # an absent dataset has no key in memory
        with contextlib.suppress(PoolAbsent, NotFound):
            await step()
    except (Failed, OSError) as exc:
        warn(f"qvm-zfs lock: {exc}")
        return str(exc)
    return None


async def _lock_configured(pool: Pool) -> None:
    """Lock a pool of qubesd."""
    check_zpool(pool)
    await _lock(pool.name, pool.dataset)


async def _lock_unconfigured(mark: ClaimedDataset) -> None:
    """Lock a dataset that is marked as a pool's, which qubesd does not have."""
    place = printable(mark.dataset, SHOWN)
    if is_supported(mark.dataset):
        await _lock(
            f"{printable(mark.claimed_by, SHOWN)} ({place})", mark.dataset
        )
    elif mark.loaded:
        raise Failed(messages.STAYS_UNLOCKED, dataset=place)


async def _lock(name: str, dataset: str) -> None:
    """Unload the key of *dataset*.

    :param name: of the pool, for the messages
    :raises Failed: if the key is still loaded
    """
    try:
        await keys.unload(dataset)
    except Locked:
        say(f"{name} is already locked")
    except (PoolAbsent, NotFound):
        raise
    except ZfsError as exc:
        raise Failed("{pool}: {why}", pool=name, why=reason(exc)) from exc
    else:
        say(f"{name} is locked")
