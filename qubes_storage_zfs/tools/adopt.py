# SPDX-License-Identifier: BSD-2-Clause
"""Take over, in place, a pool of upstream's zfs driver or an older layout.

Without --apply nothing is changed: what would be done is printed.  It is done
while qubesd is stopped, is to be repeated if it was cut short, and can be
undone until a qube of the pool is started.
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
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument(
        "--undo", action="store_true", help="make it as it was before"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would be done (the default)",
    )
    how.add_argument("--apply", action="store_true", help="do it")
    parser.add_argument(
        "--qubes-xml",
        type=Path,
        default=QUBES_XML,
        metavar="FILE",
        help="where qubesd keeps what it knows (default: %(default)s)",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    try:
        await (_undo if arguments.undo else _adopt)(arguments)
    except Refused as exc:
        for text in exc.reasons[:-1]:
            warn(f"qvm-zfs adopt: {text}")
        raise Failed(exc.reasons[-1]) from exc
    return 0


@dataclass(frozen=True)
class _Situation:
    """A pool as qubes.xml and the disk have it.

    :ivar record: the text of the record on the container; None if there is none
    :ivar is_ours: whether qubes.xml has it as a pool of this driver
    """

    xml: QubesXml
    pool: MigratingPool
    disk: Disk
    record: str | None
    is_ours: bool


async def _read(arguments: argparse.Namespace) -> _Situation:
    """Read qubes.xml and the disk.

    :raises Refused: if that must not be done now, or the pool is of no kind
        that can be migrated
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
    is_ours = attributes.get("driver") == pool.driver and not has_old_vids
    return _Situation(xml, pool, disk, own.get(naming.ADOPTED), is_ours)


async def _read_disk(pool: MigratingPool) -> Disk:
    async with slow(f"Looking at {pool.container}"):
        return await execute.read_disk(pool)


# --- adopting


async def _adopt(arguments: argparse.Namespace) -> None:
    """Adopt the pool, or print how.

    :raises Refused: if that is not possible
    """
    now = await _read(arguments)
    xml, pool = now.xml, now.pool
    if now.is_ours:
        if now.record is None:
            raise Refused(messages.ADOPT_OURS, pool=pool.pool)
        say(f"{pool.pool} is adopted already.")
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
    _say_done(arguments, xml.write(), "adopted")


def _dom0_record(now: _Situation, settings: Settings | None) -> Dom0Record:
    """Return what dom0 has to record for an undo.

    :param settings: of the qubes root; None: an earlier run, which was cut
        short, recorded them
    :raises Refused: if a record that exists is of another adoption
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
    """Check the datasets as the driver will at the first use.

    :raises Refused: if a property is not allowed; qubes.xml is as it was
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
    """Undo the adoption, or print how.

    :raises Refused: if that is not possible
    """
    now = await _read(arguments)
    if now.record is None:
        _undo_nothing(arguments, now)
        return
    plan, disk = await _undone(now, now.record)
    if not await _may_apply(arguments, plan, disk, now.xml):
        return
    backup = now.xml.write()
    await _carry_out(plan)
    saved.delete(arguments.pool)
    _say_done(arguments, backup, "as it was")


def _undo_nothing(arguments: argparse.Namespace, now: _Situation) -> None:
    """Finish an undo that was cut short after it removed the disk's record.

    :raises Refused: if the pool was not adopted
    """
    if now.is_ours or saved.load(arguments.pool) is None:
        raise Refused(messages.NOT_ADOPTED, pool=arguments.pool)
    if arguments.apply:
        saved.delete(arguments.pool)
    say(f"{arguments.pool} is as it was.")


async def _undone(now: _Situation, text: str) -> tuple[Plan, Disk]:
    """Return the plan to undo it, and the disk; change qubes.xml in memory.

    :param text: the record on the container
    :raises Refused: if it cannot be undone
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
    """Print the plan; return whether it is to be carried out.

    :raises Refused: if it is, and a volume is in use
    """
    async with slow("Looking who uses its volumes"):
        obstacles = [text async for text in _in_use(disk)]
    if obstacles and arguments.apply:
        raise Refused(*obstacles)
    _show(plan, xml, obstacles)
    if not arguments.apply:
        _say_how(arguments)
    return bool(arguments.apply)


async def _in_use(disk: Disk) -> AsyncIterator[str]:
    """Yield a sentence for each zvol that is open."""
    for name in disk.volumes:
        if await lzc.in_thread(name, devices.holders, name):
            holders = await devices.persistent_holders(name)
            if holders:
                yield messages.ADOPT_IN_USE.format(
                    dataset=name, holders="; ".join(holders)
                )


async def _carry_out(plan: Plan) -> None:
    async with slow("Changing them"):
        await execute.carry_out(plan)


def _show(plan: Plan, xml: QubesXml, obstacles: list[str]) -> None:
    for step in plan.steps:
        say(f"{step.dataset}: {step.text}")
        for text in step.details():
            say(f"    {text}")
    for text in xml.changes():
        say(f"{xml.path}: {text}")
    for text in plan.left:
        say(f"left as it is: {text}")
    for text in obstacles:
        say(f"before that: {text}")


def _say_how(arguments: argparse.Namespace) -> None:
    undo = "--undo " if arguments.undo else ""
    say("Nothing was changed. To do it, shut down the pool's qubes and run:")
    say("  sudo systemctl stop qubesd")
    say(f"  sudo qvm-zfs adopt {undo}--apply {arguments.pool}")
    say("  sudo systemctl start qubesd")


def _say_done(
    arguments: argparse.Namespace, backup: Path | None, state: str
) -> None:
    if backup is not None:
        say(f"{arguments.qubes_xml} was changed; as it was it is in {backup}")
    say(f"{arguments.pool} is {state}.")
    say("Now: sudo systemctl start qubesd")
