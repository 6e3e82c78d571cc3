"""Forget a pool's key now, or say who still holds it."""

import argparse
import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..store.messages import reason
from ..zfs import keys
from ..zfs.errors import Locked, NotFound, PoolAbsent, ZfsError
from ..zfs.text import SHOWN, printable
from .common import ENCRYPTED, Failed, Pool, configured, qubesd
from .output import say, warn
from .pools import Mark, check_zpool, encrypted_pool, is_supported, look


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("pool", metavar="POOL", nargs="?")
    which.add_argument(
        "--all", action="store_true", help="the keys of all pools"
    )


async def run(given: argparse.Namespace) -> int:
    if given.all:
        return await _lock_all()
    pool = await encrypted_pool(given.pool, secret=False)
    await _lock(pool.name, pool.dataset)
    return 0


async def _lock_all() -> int:
    """Lock what can be locked, configured or not; a failure ends nothing.

    Configured pools come first and side by side, so that a zpool that does not
    answer delays no other configured pool.
    """
    failures, ours = [], list[Pool]()
    try:
        ours = configured(qubesd())
    except Failed as exc:
        warn(f"qvm-zfs lock: {exc}")
        failures.append(str(exc))
    steps = [partial(_lock_ours, each) for each in ours if _has_key(each)]
    failures += await _side_by_side(steps)
    found = await look(ours)
    for text in found.unread:
        warn(f"qvm-zfs lock: {text}")
    failures += found.unread
    strange = [partial(_lock_strange, each) for each in found.strange_roots()]
    failures += await _side_by_side(strange)
    if not steps and not strange and not failures:
        raise Failed("there is no encrypted pool")
    return 1 if failures else 0


async def _side_by_side(
    steps: Sequence[Callable[[], Awaitable[None]]],
) -> list[str]:
    """Run *steps* at once; print and return the failures."""
    outcomes = await asyncio.gather(*map(_outcome, steps))
    return [text for text in outcomes if text is not None]


async def _outcome(step: Callable[[], Awaitable[None]]) -> str | None:
    try:
        # what is not there has no key in memory
        with contextlib.suppress(PoolAbsent, NotFound):
            await step()
    except (Failed, OSError) as exc:
        warn(f"qvm-zfs lock: {exc}")
        return str(exc)
    return None


def _has_key(pool: Pool) -> bool:
    return pool.driver == ENCRYPTED


async def _lock_ours(pool: Pool) -> None:
    check_zpool(pool)
    await _lock(pool.name, pool.dataset)


async def _lock_strange(mark: Mark) -> None:
    """Lock what is marked as a pool's that qubesd does not have."""
    place = printable(mark.dataset, SHOWN)
    if is_supported(mark.dataset):
        await _lock(f"{printable(mark.owner, SHOWN)} ({place})", mark.dataset)
    elif mark.loaded:
        raise Failed(
            f"{place} stays unlocked, because this driver does not support"
            " its name; run 'sudo zfs unload-key' with the name in quotes"
        )


async def _lock(name: str, dataset: str) -> None:
    """:raises Failed: naming the pool, if its key stays loaded"""
    try:
        await keys.unload(dataset)
    except Locked:
        say(f"{name} is locked already.")
    except (PoolAbsent, NotFound):
        raise
    except ZfsError as exc:
        raise Failed(f"{name}: {reason(exc)}") from exc
    else:
        say(f"{name} is locked.")
