# SPDX-License-Identifier: BSD-2-Clause
"""Migrate a pool of upstream's zfs driver, or of an older layout, in place.

Without --apply, adopt only prints the changes.  With --apply it makes them,
which needs qubesd to be stopped.  Repeat the command if it was interrupted.
--undo restores the earlier state until a qube of the pool is started.
"""

import argparse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ..migrate import execute, records, saved
from ..migrate.disk import Disk
from ..migrate.errors import Refused
from ..migrate.plan import plan_migration
from ..migrate.pools import MigratingPool, Origin, migrating_pool
from ..migrate.records import Dom0Record, Settings
from ..migrate.steps import Plan
from ..migrate.undo import plan_undo
from ..store import messages, naming, policy
from ..store.container import holder_mark
from ..zfs import devices, importexport, lzc
from . import qubes_xml
from .common import QUBES_XML, Failed, Pool, slow
from .output import say, warn
from .pools import check_zpool
from .qubes_xml import QubesXml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "pool",
        metavar="POOL",
        help="pool of upstream's driver zfs, or of an older version of this"
        " driver",
    )
    parser.add_argument(
        "--undo",
        action="store_true",
        help="undo the migration: restore names, properties and qubes.xml"
        " (default: migrate); refused once a volume was changed",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="print the changes and change nothing (the default)",
    )
    how.add_argument(
        "--apply",
        action="store_true",
        help="make the changes (default: only print them); refused while"
        " qubesd runs or a volume is in use",
    )
    parser.add_argument(
        "--qubes-xml",
        type=Path,
        default=QUBES_XML,
        metavar="FILE",
        help="the configuration of qubesd, which is read and, with --apply,"
        " rewritten; the earlier version is kept beside it (default:"
        " %(default)s)",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    try:
        await (_undo if arguments.undo else _adopt)(arguments)
    except Refused as exc:
        for text in exc.reasons[:-1]:
            warn(f"qvm-zfs adopt: {text}")
        raise Failed(exc.reasons[-1]) from exc
    return 0


@dataclass(frozen=True)
class _Situation:
    """A pool in qubes.xml and on the disk.

    :ivar record: text of the record on the container; None if it has none
    :ivar is_migrated: whether it is a pool of this driver in qubes.xml
    """

    xml: QubesXml
    pool: MigratingPool
    disk: Disk
    record: str | None
    is_migrated: bool


async def _read(arguments: argparse.Namespace) -> _Situation:
    """Read qubes.xml and the disk.

    :raises Refused: if qubesd runs and ``--apply`` is set, or if a pool of this
        kind cannot be migrated
    """
    if arguments.apply and qubes_xml.qubesd_runs():
        raise Refused(messages.QUBESD_RUNS)
    xml = QubesXml(arguments.qubes_xml)
    attributes = xml.pool(arguments.pool).attrib
    volumes = xml.volumes(arguments.pool)
    pool = migrating_pool(attributes, volumes)
    guid = attributes.get(naming.ZPOOL_GUID)
    check_zpool(Pool(pool.pool, pool.driver, pool.container, guid))
    disk = await _read_disk(pool)
    own = disk.container.own if disk.container is not None else {}
    has_old_vids = any(
        volume.vid.startswith(pool.container + "/") for volume in volumes
    )
    is_migrated = attributes.get("driver") == pool.driver and not has_old_vids
    return _Situation(xml, pool, disk, own.get(naming.MIGRATED), is_migrated)


async def _read_disk(pool: MigratingPool) -> Disk:
    """Return the datasets of the pool."""
    async with slow(f"Reading {pool.container}"):
        return await execute.read_disk(pool)


# --- migrating


async def _adopt(arguments: argparse.Namespace) -> None:
    """Migrate the pool, or print the plan.

    :raises Refused: if the pool cannot be migrated
    """
    now = await _read(arguments)
    xml, pool = now.xml, now.pool
    if now.is_migrated:
        if now.record is None:
            raise Refused(messages.ADOPT_OURS, pool=pool.pool)
        say(f"{pool.pool} is already migrated")
        return
    mark = holder_mark()[naming.HOLDER]
    volumes = xml.volumes(pool.pool)
    plan = plan_migration(pool, volumes, now.disk, mark).checked()
    settings = plan.record.settings if plan.record is not None else None
    record = _dom0_record(now, settings)
    xml.adopt(pool, record.zpool_guid)
    if not await _may_apply(arguments, plan, now.disk, xml):
        return
    saved.save(record)
    await _carry_out(plan)
    await _must_be_allowed(pool)
    _print_done(arguments, xml.write(), "migrated")


def _dom0_record(now: _Situation, settings: Settings | None) -> Dom0Record:
    """Return the record that dom0 keeps for an undo.

    :param settings: earlier settings of the qubes root; None: an interrupted
        run has already recorded them
    :raises Refused: if an existing record is of another migration
    """
    pool, record = now.pool, None
    imported = importexport.guid(pool.zpool)
    if now.record is not None:
        on_disk = records.disk_record(pool.container, now.record)
        record = saved.load(pool.pool)
        records.check_same(pool, on_disk, imported, record)
    if record is not None:
        return record
    return Dom0Record(
        pool=pool.pool,
        container=pool.container,
        zpool_guid=imported,
        origin=pool.origin,
        inside=pool.inside,
        guid_is_new=now.xml.pool(pool.pool).get(naming.ZPOOL_GUID) is None,
        dropped=now.xml.dropped(pool),
        settings=settings,
    )


async def _must_be_allowed(migrated: MigratingPool) -> None:
    """Check the datasets as the driver does at the first use.

    :raises Refused: if a property is not allowed; qubes.xml is unchanged then
    """
    pool = Pool(migrated.pool, migrated.driver, migrated.container)
    try:
        await policy.check(pool.place)
    except policy.Refused as exc:
        raise Refused(
            messages.ADOPTED_BUT, pool=migrated.pool, why=exc
        ) from exc


# --- undoing


async def _undo(arguments: argparse.Namespace) -> None:
    """Undo the migration, or print the plan.

    :raises Refused: if the migration cannot be undone
    """
    now = await _read(arguments)
    if now.record is None:
        _finish_undo(arguments, now)
        return
    plan, disk = await _plan_undo(now, now.record)
    if not await _may_apply(arguments, plan, disk, now.xml):
        return
    backup = now.xml.write()
    await _carry_out(plan)
    saved.delete(arguments.pool)
    _print_done(arguments, backup, "as before the migration")


def _finish_undo(arguments: argparse.Namespace, now: _Situation) -> None:
    """Finish an undo that was interrupted after it removed the disk's record.

    :raises Refused: if the pool was not migrated
    """
    if now.is_migrated or saved.load(arguments.pool) is None:
        raise Refused(messages.NOT_ADOPTED, pool=arguments.pool)
    if arguments.apply:
        saved.delete(arguments.pool)
    say(f"{arguments.pool} is as before the migration")


async def _plan_undo(now: _Situation, text: str) -> tuple[Plan, Disk]:
    """Return the plan of the undo, and the disk; change qubes.xml in memory.

    :param text: the record on the container
    :raises Refused: if the migration cannot be undone
    """
    xml, name = now.xml, now.pool.pool
    on_disk = records.disk_record(now.pool.container, text)
    volumes = xml.volumes(name)
    before = on_disk.origin, on_disk.inside
    pool = migrating_pool(xml.pool(name).attrib, volumes, before)
    record = saved.load(name)
    imported = importexport.guid(pool.zpool)
    records.check_same(pool, on_disk, imported, record)
    is_upstream = pool.origin is Origin.UPSTREAM
    if record is None and not is_upstream:
        raise Refused(messages.NOT_SAVED, pool=name)
    disk = await _read_disk(pool)
    qubes = {volume.qube for volume in volumes}
    plan = plan_undo(pool, on_disk, disk, qubes).checked()
    xml.undo(
        pool,
        "zfs" if is_upstream else pool.driver,
        record.dropped if record is not None else {},
        remove_guid=is_upstream or (record is not None and record.guid_is_new),
    )
    return plan, disk


# --- both


async def _may_apply(
    arguments: argparse.Namespace, plan: Plan, disk: Disk, xml: QubesXml
) -> bool:
    """Print the plan; return whether ``--apply`` is set.

    :raises Refused: if it is set, and a volume is in use
    """
    async with slow("Checking whether its volumes are in use"):
        obstacles = [text async for text in _in_use(disk)]
    if obstacles and arguments.apply:
        raise Refused(*obstacles)
    _show(plan, xml, obstacles)
    if not arguments.apply:
        _print_commands(arguments)
    return bool(arguments.apply)


async def _in_use(disk: Disk) -> AsyncIterator[str]:
    """Yield a message for each zvol that is open."""
    for name in disk.volumes:
        if await lzc.in_thread(name, devices.holders, name):
            holders = await devices.persistent_holders(name)
            if holders:
                yield messages.ADOPT_IN_USE.format(
                    dataset=name, holders="; ".join(holders)
                )


async def _carry_out(plan: Plan) -> None:
    """Make the changes of the plan."""
    async with slow("Changing the datasets"):
        await execute.carry_out(plan)


def _show(plan: Plan, xml: QubesXml, obstacles: list[str]) -> None:
    """Print the changes, the notes and the volumes that are in use."""
    for step in plan.steps:
        say(f"{step.dataset}: {step.text}")
        for text in step.details():
            say(f"    {text}")
    for text in xml.changes():
        say(f"{xml.path}: {text}")
    for text in plan.left:
        say(f"note: {text}")
    for text in obstacles:
        say(f"first: {text}")


def _print_commands(arguments: argparse.Namespace) -> None:
    """Print the commands that make the changes."""
    undo = "--undo " if arguments.undo else ""
    say("nothing was changed; shut down the qubes of the pool, then run:")
    say("  sudo systemctl stop qubesd")
    say(f"  sudo qvm-zfs adopt {undo}--apply {arguments.pool}")
    say("  sudo systemctl start qubesd")


def _print_done(
    arguments: argparse.Namespace, backup: Path | None, state: str
) -> None:
    """Print the result.

    :param backup: the earlier version of qubes.xml; None: it was not changed
    :param state: the state of the pool, which follows "POOL is"
    """
    if backup is not None:
        say(
            f"{arguments.qubes_xml} was changed; its earlier version is {backup}"
        )
    say(f"{arguments.pool} is {state}")
    say("next: sudo systemctl start qubesd")
