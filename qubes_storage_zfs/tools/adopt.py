"""Take over, in place, a pool of upstream's zfs driver or an older layout.

Without --apply nothing is changed: what would be done is printed.  It is done
while qubesd is stopped, is to be repeated if it was cut short, and can be
undone until a qube of the pool is started.
"""

import argparse
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import layout, policy
from ..container import holder_mark
from ..zfs import channel, core, device, native
from . import adopt_steps, qubes_xml
from .adopt_plan import Adoption
from .adopt_steps import Plan, Refused, Step, Where
from .adopt_undo import undo
from .common import QUBES_XML, Failed, slow

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
            print(f"qvm-zfs adopt: {text}", file=sys.stderr)
        raise Failed(exc.args[-1]) from exc
    return 0


async def _adopt(given: argparse.Namespace) -> None:
    if given.apply and qubes_xml.qubesd_runs():
        raise Refused(STOPPED)
    store = qubes_xml.Store(given.qubes_xml)
    attributes = store.pool(given.pool).attrib
    volumes = store.volumes(given.pool)
    place = adopt_steps.where(attributes, volumes)
    found = await _look(place)
    record = found.get("container", {}).get("own", {}).get(layout.ADOPTED)
    if given.undo:
        if record is None:
            raise Refused(f"the pool {given.pool} was not adopted")
        place = adopt_steps.where(attributes, volumes, record)
        found = await _look(place)
        plan = undo(place, found, {v.qube for v in volumes})
    elif _is_ours(place, attributes, [v.vid for v in volumes]):
        if record is None:
            raise Refused(f"the pool {given.pool} is this driver's already")
        print(f"{given.pool} is adopted already.")
        return
    else:
        mark = holder_mark()[layout.HOLDER]
        plan = Adoption(place, volumes, found, mark)()
    plan.checked()
    async with slow("Looking who uses its volumes"):
        held = [text async for text in _in_use(found)]
    if held and given.apply:
        raise Refused(*held)
    _show(plan, held)
    if not given.apply:
        _say_how(given)
        return
    if given.undo:
        driver = "zfs" if place.was == adopt_steps.UPSTREAM else place.driver
        store.undo(place, driver, dict(_dropped(found)))
        kept = store.write()
        await _do(plan)
    else:
        await _do(plan)
        store.adopt(place)
        kept = store.write()
    if kept is not None:
        print(f"{given.qubes_xml} was changed; as it was it is in {kept}")
    print(f"{given.pool} is {'as it was' if given.undo else 'adopted'}.")
    print("Now: sudo systemctl start qubesd")


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
        "prefix": layout.PREFIX,
        "settings": list(adopt_steps.SETTINGS),
        "zvol_settings": list(adopt_steps.ZVOL_SETTINGS),
    }
    async with slow(f"Looking at {place.container}"):
        await core.sync(place.container)
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
        if await core.in_thread(device.holders, name):
            who = await device.lasting_holders(name)
            if who:
                yield f"{name} is in use by {'; '.join(who)}; end that first"


def _dropped(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Qube -> volume -> attributes that are no more in qubes.xml."""
    for each in found["moved"].values():
        record = each.get("own", {}).get(layout.ADOPTED)
        if record is not None:
            yield each["name"].rpartition("/")[2], json.loads(record)


def _show(plan: Plan, held: list[str]) -> None:
    for step in plan.steps:
        print(f"{step.dataset}: {step.text}")
    for text in plan.left:
        print(f"left as it is: {text}")
    for text in held:
        print(f"before that: {text}")


def _say_how(given: argparse.Namespace) -> None:
    undo = "--undo " if given.undo else ""
    print("Nothing was changed. To do it, shut down the pool's qubes and run:")
    print("  sudo systemctl stop qubesd")
    print(f"  sudo qvm-zfs adopt {undo}--apply {given.pool}")
    print("  sudo systemctl start qubesd")


async def _do(plan: Plan) -> None:
    async with slow("Changing them"):
        for step in plan.steps:
            await _DO[step.verb](step)


async def _create(step: Step) -> None:
    await core.create_filesystem(
        step.dataset, policy.HOME_PROPERTIES, mountable=False
    )


async def _settings(step: Step) -> None:
    for name, value in step.settings.items():
        await native.set_property(step.dataset, name, value)


async def _rename(step: Step) -> None:
    await native.rename(step.dataset, step.new)


async def _change(step: Step) -> None:
    changes = {"changes": list(step.changes)}
    await channel.change("changes", step.dataset, changes)


_DO = {
    "create": _create,
    "set": _settings,
    "rename": _rename,
    "change": _change,
}
