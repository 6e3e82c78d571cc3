# SPDX-License-Identifier: BSD-2-Clause
"""Show the state of each ZFS pool, its key and its uses.

Below the table, status prints for each pool the reason why its qubes cannot
start and the remedy, the volumes of an unlocked pool that are in use, and space
that removed volumes still take.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..store.messages import reason
from ..store.space import Space
from ..zfs import commands, keys, lzc
from ..zfs.errors import (
    NoModule,
    NotReadable,
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
from .common import (
    ENCRYPTED,
    App,
    Failed,
    Pool,
    qubesd,
    seconds_until_unload,
)
from .output import say, say_json, warn

OUTSIDE = (
    "{qube}: its volume {volume} is written to the pool {pool}, which the key"
    " of its other volumes does not encrypt; see encryption.md in the package's"
    " documentation"
)
#: states of a pool that exists and whose zpool responds
_PRESENT = frozenset({"available", "locked", "unlocked"})
#: exception -> state of a pool that ZFS cannot query
_STATES: Mapping[type[ZfsError], str] = {
    PoolAbsent: "absent",
    NoModule: "no zfs module",
    ReadOnlyZpool: "read-only",
    SilentZpool: "silent",
    Suspended: "suspended",
}
#: bytes of removed volumes from which on they are shown; an empty volume takes
#: less
SHOWN_FROM = 1 << 20
REMOVED = (
    "{name}: {mib} MiB of removed volumes are still allocated, because several"
    " volumes, or datasets that other software created, are clones of them; see"
    " tuning.md in the package's documentation"
)


@dataclass(frozen=True)
class PoolStatus:
    """The status of one pool.

    :ivar state: the state, as the manual page lists them
    :ivar notes: messages on what prevents qubes from starting
    :ivar holders: volume -> texts on the uses of its device
    :ivar removed_usage: bytes of removed volumes that are still allocated; None
        if not known
    :ivar unloaded_in: seconds until qubesd unloads the key; None if there is no
        time limit, or it is not known
    """

    pool: Pool
    state: str
    notes: Sequence[str] = ()
    holders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    removed_usage: int | None = None
    unloaded_in: float | None = None

    @property
    def shown_state(self) -> str:
        """The state as the table shows it."""
        state = self.state
        if self.unloaded_in is not None:
            state += f"; the key will be unloaded in {self.unloaded_in:.0f} s"
        return state if self.pool.is_configured else f"{state}, not configured"

    def as_json(self) -> dict[str, object]:
        """Return the object for ``--json``."""
        return {
            "name": self.pool.name,
            "driver": self.pool.driver,
            "dataset": self.pool.dataset,
            "configured": self.pool.is_configured,
            "state": self.state,
            "notes": list(self.notes),
            "holders": {k: list(v) for k, v in self.holders.items()},
            "removed_usage": self.removed_usage,
            "unloaded_in": self.unloaded_in,
        }


@dataclass(frozen=True)
class Outside:
    """A volume outside encrypted pools, of a qube with volumes in one."""

    qube: str
    volume: str
    pool: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "pool",
        metavar="POOL",
        nargs="*",
        help="pools to show (default: all pools of qubesd, and all datasets"
        " marked as a pool's)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object for programs (default: a table)",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    app = qubesd()
    survey = await pools_of.survey(app)
    chosen = [
        pool
        for pool in survey.pools
        if not arguments.pool or pool.name in arguments.pool
    ]
    pools = [await _status(pool, survey) for pool in chosen]
    outside = list(_outside(app)) if app is not None else None
    is_overwritten = freed_memory.overwritten()
    if arguments.json:
        volumes = None
        if outside is not None:
            volumes = [asdict(volume) for volume in outside]
        say_json(
            {
                "pools": [status.as_json() for status in pools],
                "outside": volumes,
                "init_on_free": is_overwritten,
            }
        )
    else:
        _show(pools, outside or ())
        if not is_overwritten and any(pool.is_encrypted for pool in chosen):
            say(freed_memory.NOT_OVERWRITTEN)
    for text in survey.unread:
        warn(f"qvm-zfs status: {text}")
    missing = set(arguments.pool) - {pool.name for pool in chosen}
    for name in sorted(missing):
        say(f"{name}: no such ZFS pool; 'qvm-zfs status' lists the pools")
    return 1 if missing else 0


async def _status(pool: Pool, survey: pools_of.Survey) -> PoolStatus:
    """Return the status of a pool; a failure becomes its state."""
    try:
        pools_of.check_zpool(pool)
        return await _status_of_present(pool, survey)
    except Failed as exc:
        return PoolStatus(pool, f"another zpool ({exc})")
    except ZfsError as exc:
        notes = [reason(exc)] if isinstance(exc, NotReadable) else []
        state = _STATES.get(type(exc), f"broken ({exc})")
        return PoolStatus(pool, state, notes)


async def _status_of_present(pool: Pool, survey: pools_of.Survey) -> PoolStatus:
    """Return the status of a pool whose zpool is imported.

    :raises ZfsError: if ZFS fails, or does not respond
    """
    if not await commands.responds(pool.qubes_root):
        raise SilentZpool(pool.zpool)
    key = await keys.state(pool.dataset)
    state = _state(pool, key)
    notes = [reason(exc) for exc in await _obstacles(pool, key)]
    if survey.other_claim(pool) is not None:
        state = "marked as another pool's"
    holders: dict[str, tuple[str, ...]] = {}
    if state == "unlocked":
        holders = await lzc.in_thread(
            pool.dataset, keys.open_zvols, pool.dataset
        )
    start = pool.dataset + "/"
    return PoolStatus(
        pool,
        state,
        notes,
        {
            dataset.removeprefix(start): names
            for dataset, names in sorted(holders.items())
        },
        await _removed_usage(pool) if state in _PRESENT else None,
        (
            seconds_until_unload(pool)
            if state == "unlocked" and not holders
            else None
        ),
    )


def _state(pool: Pool, key: keys.KeyState) -> str:
    """Return the state of a pool that ZFS can query."""
    if not key.exists:
        return "missing"
    if not pool.is_encrypted:
        return "available"
    return "locked" if key.locked else "unlocked"


async def _obstacles(pool: Pool, key: keys.KeyState) -> list[ZfsError]:
    """Return the failures that starting a qube in the pool would have."""
    obstacles: list[ZfsError] = []
    root_key = key
    if pool.qubes_root != pool.dataset:
        root_key = await keys.state(pool.qubes_root)
    if root_key.read_only_by is not None:
        obstacles.append(ReadOnlyDataset(root_key.read_only_by))
    wrong = keys.obstacle(pool.dataset, key)
    return [*obstacles, wrong] if wrong is not None else obstacles


async def _removed_usage(pool: Pool) -> int | None:
    """Return the bytes of removed volumes that clones keep; None if not known."""
    space = Space(pool.qubes_root)
    await space.count()
    return space.removed


def _outside(app: App) -> Iterator[Outside]:
    """Yield the volumes outside encrypted pools of qubes that also use one."""
    encrypted = {p.name for p in app.pools.values() if p.driver == ENCRYPTED}
    for qube in app.domains:
        volumes = list(qube.volumes.values()) if qube.klass != "AdminVM" else []
        if not any(volume.pool in encrypted for volume in volumes):
            continue
        for volume in volumes:
            if volume.pool in encrypted or not volume.rw or volume.ephemeral:
                continue
            yield Outside(qube.name, volume.name, volume.pool)


def _show(pools: Sequence[PoolStatus], outside: Sequence[Outside]) -> None:
    """Print the table and the notes below it."""
    if not pools:
        say("there is no ZFS pool; 'qvm-pool add' adds one")
    rows = [("POOL", "DRIVER", "DATASET", "STATE")] + [
        (
            printable(status.pool.name, SHOWN),
            printable(status.pool.driver, SHOWN),
            printable(status.pool.dataset, SHOWN),
            status.shown_state,
        )
        for status in pools
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows if pools else ():
        cells = [
            cell.ljust(width)
            for cell, width in zip(row[:3], widths, strict=True)
        ]
        say("  ".join([*cells, row[3]]))
    for status in pools:
        _show_notes(status)
    for volume in outside:
        say(OUTSIDE.format(**asdict(volume)))


def _show_notes(status: PoolStatus) -> None:
    """Print the notes on one pool."""
    name = status.pool.name
    for note in status.notes:
        say(f"{name}: {note}")
    for volume, holders in status.holders.items():
        say(f"{name}: {volume} is in use by {', '.join(holders)}")
    usage = status.removed_usage or 0
    if usage >= SHOWN_FROM:
        say(REMOVED.format(mib=usage >> 20, name=name))
