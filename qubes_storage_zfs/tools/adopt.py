"""Take over, in place, a pool of upstream's zfs driver or an older layout.

Without --apply nothing is changed: what would be done is printed.  It is done
while qubesd is stopped, is to be repeated if it was cut short, and can be
undone until a qube of the pool is started.
"""

import argparse
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ..migrate import records, steps
from ..migrate.plan import Adoption
from ..migrate.records import Saved
from ..migrate.steps import Plan, Refused, Step, Where
from ..migrate.undo import undo
from ..store import messages, naming, policy
from ..store.container import holder_mark
from ..zfs import channel, commands, devices, importexport, lzc
from . import qubes_xml
from .common import QUBES_XML, Failed, Pool, slow
from .output import say, warn
from .pools import check_zpool
from .qubes_xml import Store

STOPPED = (
    "qubesd runs; shut down the qubes of the pool, run 'sudo systemctl stop"
    " qubesd' and then this command again"
)


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


async def run(given: argparse.Namespace) -> int:
    try:
        await _adopt(given)
    except Refused as exc:
        for text in exc.args[:-1]:
            warn(f"qvm-zfs adopt: {text}")
        raise Failed(exc.args[-1]) from exc
    return 0


async def _adopt(given: argparse.Namespace) -> None:
    if given.apply and qubes_xml.qubesd_runs():
        raise Refused(STOPPED)
    store = qubes_xml.Store(given.qubes_xml)
    attributes = store.pool(given.pool).attrib
    volumes = store.volumes(given.pool)
    place = steps.where(attributes, volumes)
    guid = attributes.get(naming.ZPOOL_GUID)
    check_zpool(Pool(place.pool, place.driver, place.container, guid))
    found = await _look(place)
    record = found.get("container", {}).get("own", {}).get(naming.ADOPTED)
    ours = _is_ours(place, attributes, [v.vid for v in volumes])
    if given.undo and record is None:
        _refuse_undo(given, ours)
        return
    if given.undo:
        plan, found = await _undone(given, store, place, record)
    elif ours:
        if record is None:
            raise Refused(f"the pool {given.pool} is this driver's already")
        say(f"{given.pool} is adopted already.")
        return
    else:
        mark = holder_mark()[naming.HOLDER]
        adoption = Adoption(place, volumes, found, mark)
        plan = adoption().checked()
        saved = _to_save(store, place, record, adoption.settings)
        store.adopt(place, saved.zpool_guid)
    async with slow("Looking who uses its volumes"):
        held = [text async for text in _in_use(found)]
    if held and given.apply:
        raise Refused(*held)
    _show(plan, store, held)
    if not given.apply:
        _say_how(given)
        return
    if given.undo:
        kept = store.write()
        await _do(plan)
        records.forget(given.pool)
    else:
        records.save(saved)
        await _do(plan)
        await _must_be_allowed(place)
        kept = store.write()
    if kept is not None:
        say(f"{given.qubes_xml} was changed; as it was it is in {kept}")
    say(f"{given.pool} is {'as it was' if given.undo else 'adopted'}.")
    say("Now: sudo systemctl start qubesd")


def _refuse_undo(given: argparse.Namespace, ours: bool) -> None:
    """Nothing is recorded on the disk: it is undone, or was not adopted.

    :param ours: whether qubes.xml has the pool as one of this driver
    :raises Refused: if it was not adopted
    """
    if ours or records.load(given.pool) is None:
        raise Refused(f"the pool {given.pool} was not adopted")
    # undoing was cut short by then
    if given.apply:
        records.forget(given.pool)
    say(f"{given.pool} is as it was.")


def _to_save(
    store: Store,
    place: Where,
    record: str | None,
    settings: Mapping[str, str | None] | None,
) -> Saved:
    """What dom0 has to know to undo it.

    :param record: on the container: adopting was cut short, if there is one
    :param settings: as Saved has them
    :raises Refused: if a record there is of another adoption
    """
    saved = records.load(place.pool) if record is not None else None
    imported = importexport.guid(place.container.partition("/")[0])
    if record is not None:
        on_disk = records.layout_of(place.container, record)
        records.check_same(place, on_disk, imported, saved)
    if saved is not None:
        return saved
    return Saved(
        pool=place.pool,
        container=place.container,
        zpool_guid=imported,
        was=place.was,
        old=place.inside,
        noted=store.pool(place.pool).get(naming.ZPOOL_GUID) is None,
        dropped=store.dropped(place),
        settings=settings,
    )


async def _undone(
    given: argparse.Namespace, store: Store, place: Where, record: str
) -> tuple[Plan, dict[str, Any]]:
    """The plan to undo it, and what is on disk; *store* is changed, too.

    :param record: on the container
    :raises Refused: if it cannot be undone
    """
    on_disk = records.layout_of(place.container, record)
    volumes = store.volumes(given.pool)
    place = steps.where(
        store.pool(given.pool).attrib, volumes, (on_disk.was, on_disk.old)
    )
    saved = records.load(given.pool)
    imported = importexport.guid(place.container.partition("/")[0])
    records.check_same(place, on_disk, imported, saved)
    upstream = place.was == steps.UPSTREAM
    if saved is None and not upstream:
        raise Refused(messages.NOT_SAVED.format(pool=given.pool))
    found = await _look(place)
    plan = undo(place, on_disk, found, {v.qube for v in volumes}).checked()
    store.undo(
        place,
        "zfs" if upstream else place.driver,
        saved.dropped if saved is not None else {},
        noted=upstream or (saved is not None and saved.noted),
    )
    return plan, found


def _is_ours(
    place: Where, attributes: Mapping[str, str], vids: list[str]
) -> bool:
    """Whether qubes.xml has it as a pool of this driver."""
    foreign = any(vid.startswith(place.container + "/") for vid in vids)
    return attributes.get("driver") == place.driver and not foreign


async def _look(place: Where) -> dict[str, Any]:
    """What is on disk; see adoptable.lua."""
    question = {
        "container": place.container,
        "home": place.home,
        "old": place.old,
        "prefix": naming.PREFIX,
        "settings": list(steps.SETTINGS),
        "zvol_settings": list(steps.ZVOL_SETTINGS),
    }
    async with slow(f"Looking at {place.container}"):
        await lzc.sync(place.container)
        found: dict[str, Any] = await channel.read(
            "adoptable", place.container, question
        )
    return found


async def _in_use(found: Mapping[str, Any]) -> AsyncIterator[str]:
    """A sentence for each zvol that somebody has open."""
    names = {
        zvol["name"]
        for which in ("old", "moved")
        for each in found[which].values()
        for zvol in each.get("inner", {}).values()
        if zvol["type"] == "volume"
    }
    for name in sorted(names):
        if await lzc.in_thread(name, devices.holders, name):
            who = await devices.lasting_holders(name)
            if who:
                yield f"{name} is in use by {'; '.join(who)}; end that first"


def _show(plan: Plan, store: Store, held: list[str]) -> None:
    for step in plan.steps:
        say(f"{step.dataset}: {step.text}")
        for text in step.details():
            say(f"    {text}")
    for text in store.changes():
        say(f"{store.path}: {text}")
    for text in plan.left:
        say(f"left as it is: {text}")
    for text in held:
        say(f"before that: {text}")


def _say_how(given: argparse.Namespace) -> None:
    undo = "--undo " if given.undo else ""
    say("Nothing was changed. To do it, shut down the pool's qubes and run:")
    say("  sudo systemctl stop qubesd")
    say(f"  sudo qvm-zfs adopt {undo}--apply {given.pool}")
    say("  sudo systemctl start qubesd")


async def _do(plan: Plan) -> None:
    async with slow("Changing them"):
        for step in plan.steps:
            await _DO[step.verb](step)


async def _must_be_allowed(place: Where) -> None:
    """Check what is on disk as the driver will at the first use.

    :raises Refused: if a property is not allowed; qubes.xml is as it was
    """
    pool = Pool(place.pool, place.driver, place.container)
    try:
        await policy.check(pool.place)
    except policy.Refused as exc:
        why = messages.ADOPTED_BUT.format(pool=place.pool, why=exc)
        raise Refused(why) from exc


async def _create(step: Step) -> None:
    await lzc.create_filesystem(
        step.dataset, policy.HOME_SETTINGS, mountable=False
    )


async def _settings(step: Step) -> None:
    for name, value in step.settings.items():
        await commands.set_property(step.dataset, name, value)


async def _rename(step: Step) -> None:
    await commands.rename(step.dataset, step.new)


async def _change(step: Step) -> None:
    changes = {"changes": list(step.changes)}
    await channel.change("changes", step.dataset, changes)


_DO = {
    "create": _create,
    "set": _settings,
    "rename": _rename,
    "change": _change,
}
