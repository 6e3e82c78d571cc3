# SPDX-License-Identifier: BSD-2-Clause
"""Forget a pool's key now, or say who still holds it."""

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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("pool", metavar="POOL", nargs="?")
    which.add_argument(
        "--all", action="store_true", help="the keys of all pools"
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    if arguments.all:
        return await _lock_all()
    pool = await encrypted_pool(arguments.pool, secret=False)
    await _lock(pool.name, pool.dataset)
    return 0


async def _lock_all() -> int:
    """Lock all pools, configured or not; a failure does not end it.

    Configured pools come first and side by side, so that a zpool that does not
    answer delays no other configured pool.
    """
    failures, ours = [], list[Pool]()
    try:
        ours = configured(qubesd())
    except Failed as exc:
        warn(f"qvm-zfs lock: {exc}")
        failures.append(str(exc))
    steps = [partial(_lock_ours, pool) for pool in ours if pool.is_encrypted]
    failures += await _side_by_side(steps)
    pools = await survey_disks(ours)
    for text in pools.unread:
        warn(f"qvm-zfs lock: {text}")
    failures += pools.unread
    strange = [partial(_lock_strange, mark) for mark in pools.strange_roots()]
    failures += await _side_by_side(strange)
    if not steps and not strange and not failures:
        raise Failed(messages.NO_ENCRYPTED_POOL)
    return 1 if failures else 0


async def _side_by_side(
    steps: Sequence[Callable[[], Awaitable[None]]],
) -> list[str]:
    """Run *steps* at once; print and return the failures."""
    outcomes = await asyncio.gather(*map(_outcome, steps))
    return [text for text in outcomes if text is not None]


async def _outcome(step: Callable[[], Awaitable[None]]) -> str | None:
    try:
        # an absent dataset has no key in memory
        with contextlib.suppress(PoolAbsent, NotFound):
            await step()
    except (Failed, OSError) as exc:
        warn(f"qvm-zfs lock: {exc}")
        return str(exc)
    return None


async def _lock_ours(pool: Pool) -> None:
    check_zpool(pool)
    await _lock(pool.name, pool.dataset)


async def _lock_strange(mark: ClaimedDataset) -> None:
    """Lock a dataset that is marked as a pool's that qubesd lacks."""
    place = printable(mark.dataset, SHOWN)
    if is_supported(mark.dataset):
        await _lock(
            f"{printable(mark.claimed_by, SHOWN)} ({place})", mark.dataset
        )
    elif mark.loaded:
        raise Failed(messages.STAYS_UNLOCKED, dataset=place)


async def _lock(name: str, dataset: str) -> None:
    """Unload the key of *dataset*.

    :raises Failed: naming the pool, if its key stays loaded
    """
    try:
        await keys.unload(dataset)
    except Locked:
        say(f"{name} is locked already.")
    except (PoolAbsent, NotFound):
        raise
    except ZfsError as exc:
        raise Failed("{pool}: {why}", pool=name, why=reason(exc)) from exc
    else:
        say(f"{name} is locked.")
