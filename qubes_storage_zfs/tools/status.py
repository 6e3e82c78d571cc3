"""Pools: whether they can be used, their keys, and who holds these."""

import argparse
from collections.abc import Iterator
from typing import Any

from ..store.messages import reason
from ..store.space import Space
from ..zfs import commands, keys, lzc
from ..zfs.errors import (
    NoModule,
    PoolAbsent,
    ReadOnlyDataset,
    ReadOnlyZpool,
    SilentZpool,
    Suspended,
    ZfsError,
)
from ..zfs.text import SHOWN, printable
from . import freed_memory
from . import pools as pools_of
from .common import ENCRYPTED, Failed, Pool, due, qubesd
from .output import say, say_json, warn

OUTSIDE = (
    "{qube}: its {volume} volume is written to the pool {pool}, which its"
    " key does not encrypt; see encryption.md in the package's documentation"
)
#: what _look() says of pools that can be asked
_PRESENT = frozenset({"available", "locked", "unlocked"})
#: bytes; less is what an empty volume takes
WORTH_TELLING = 1 << 20
REMOVED = (
    "{name}: {mib} MiB of removed volumes stay allocated, because several"
    " volumes, or something made outside of Qubes, are clones of them; see"
    " tuning.md in the package's documentation"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", nargs="*", help="only these")
    parser.add_argument("--json", action="store_true", help="for programs")


async def run(given: argparse.Namespace) -> int:
    app = qubesd()
    survey = await pools_of.survey(app)
    pools = [
        pool
        for pool in survey.pools
        if not given.pool or pool.name in given.pool
    ]
    found = [await _look(pool, survey) for pool in pools]
    outside = list(_outside(app)) if app is not None else None
    overwritten = freed_memory.overwritten()
    if given.json:
        told = {"pools": found, "outside": outside, "init_on_free": overwritten}
        say_json(told)
    else:
        _show(found, outside)
        if not overwritten and any(pool.driver == ENCRYPTED for pool in pools):
            say(freed_memory.NOT_OVERWRITTEN)
    for text in survey.unread:
        warn(f"qvm-zfs status: {text}")
    missing = set(given.pool) - {pool.name for pool in pools}
    for name in sorted(missing):
        say(f"{name}: there is no such ZFS pool")
    return 1 if missing else 0


async def _look(pool: Pool, survey: pools_of.Survey) -> dict[str, Any]:
    holders: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    try:
        pools_of.check_zpool(pool)
        if not await commands.answers(pool.home):
            raise SilentZpool(pool.zpool)
        state = await keys.state(pool.dataset)
        condition = _condition(pool, state)
        notes = [reason(each) for each in await _obstacles(pool, state)]
        if survey.other_owner(pool) is not None:
            condition = "marked as another pool's"
        if condition == "unlocked":
            holders = await lzc.in_thread(
                pool.dataset, keys.users, pool.dataset
            )
    except Failed as exc:
        condition = f"another zpool ({exc})"
    except PoolAbsent:
        condition = "absent"
    except NoModule:
        condition = "no zfs module"
    except ReadOnlyZpool as exc:
        condition, notes = "read-only", [reason(exc)]
    except SilentZpool as exc:
        condition, notes = "silent", [reason(exc)]
    except Suspended as exc:
        condition, notes = "suspended", [reason(exc)]
    except ZfsError as exc:
        condition = f"broken ({exc})"
    start = pool.dataset + "/"
    return {
        "name": pool.name,
        "driver": pool.driver,
        "dataset": pool.dataset,
        "configured": pool.is_configured,
        "state": condition,
        "notes": notes,
        "holders": {
            dataset.removeprefix(start): list(names)
            for dataset, names in sorted(holders.items())
        },
        "removed_usage": (
            await _removed_usage(pool) if condition in _PRESENT else None
        ),
        "forgotten_in": (
            due(pool) if condition == "unlocked" and not holders else None
        ),
    }


def _condition(pool: Pool, state: keys.KeyState) -> str:
    if not state.exists:
        return "missing"
    if pool.driver != ENCRYPTED:
        return "available"
    return "locked" if state.locked else "unlocked"


async def _obstacles(pool: Pool, state: keys.KeyState) -> list[ZfsError]:
    """What will keep qubes in a pool that is there from starting."""
    found: list[ZfsError] = []
    home = state
    if pool.home != pool.dataset:
        home = await keys.state(pool.home)
    if home.read_only_by is not None:
        found.append(ReadOnlyDataset(home.read_only_by))
    wrong = keys.obstacle(pool.dataset, state)
    return [*found, wrong] if wrong is not None else found


async def _removed_usage(pool: Pool) -> int | None:
    """Return the bytes that clones keep of removed volumes, if known."""
    space = Space(pool.home)
    await space.count()
    return space.removed


def _outside(app: Any) -> Iterator[dict[str, str]]:
    """Volumes outside of qubes that have one in an encrypted pool."""
    safe = {p.name for p in app.pools.values() if p.driver == ENCRYPTED}
    for qube in app.domains:
        volumes = list(qube.volumes.values()) if qube.klass != "AdminVM" else []
        if not any(volume.pool in safe for volume in volumes):
            continue
        for volume in volumes:
            if volume.pool in safe or not volume.rw or volume.ephemeral:
                continue
            yield {
                "qube": qube.name,
                "volume": volume.name,
                "pool": volume.pool,
            }


def _show(found: list[dict[str, Any]], outside: Any) -> None:
    if not found:
        say("There is no ZFS pool.")
    rows = [("POOL", "DRIVER", "DATASET", "STATE")] + [
        tuple(
            printable(cell, SHOWN)
            for cell in (each["name"], each["driver"], each["dataset"])
        )
        + (_state(each),)
        for each in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows if found else ():
        cells = [
            cell.ljust(width)
            for cell, width in zip(row[:3], widths, strict=True)
        ]
        say("  ".join([*cells, row[3]]))
    for each in found:
        for note in each["notes"]:
            say(f"{each['name']}: {note}")
        for volume, names in each["holders"].items():
            say(f"{each['name']}: {volume} is held by {', '.join(names)}")
        if (each["removed_usage"] or 0) >= WORTH_TELLING:
            say(REMOVED.format(mib=each["removed_usage"] >> 20, **each))
    for each in outside or ():
        say(OUTSIDE.format(**each))


def _state(pool: dict[str, Any]) -> str:
    state = str(pool["state"])
    if pool["forgotten_in"] is not None:
        state += f", forgotten in {pool['forgotten_in']:.0f} s"
    return state if pool["configured"] else f"{state}, not configured"
