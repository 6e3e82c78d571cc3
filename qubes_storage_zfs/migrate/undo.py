"""What it takes to make an adopted pool as it was, as long as that can be."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..store import naming
from .records import Layout, strangers
from .steps import (
    MADE,
    UNTOUCHED,
    UPSTREAM,
    Plan,
    Step,
    Where,
    inherit,
    last,
    listed,
)


def undo(
    place: Where,
    record: Layout,
    found: Mapping[str, Any],
    known: Iterable[str],
) -> Plan:
    """Everything as it was, names and properties.

    :param record: what the container says that it was
    :param known: qubes that qubes.xml knows to have volumes in the pool
    """
    plan = Plan()
    plan.refused.extend(strangers(found))
    if plan.refused:
        return plan
    about = found["container"]
    if about["own"].get(naming.OWNER) is not None:
        plan.change(
            place.container,
            f"it is no container of {place.pool} any more",
            [inherit(place.container, naming.OWNER)],
        )
    if not found.get("old_exists"):
        plan.steps.append(Step("create", place.old, "is made again"))
    names = {each["name"] for each in listed(found["old"])}
    qubes = set(known)
    for each in listed(found["moved"]):
        own = each.get("own", {})
        points = any(name.startswith(naming.POINTER) for name in own)
        moved = last(each["name"]) in qubes and not points
        if naming.ADOPTED in own or moved:
            _undo_qube(plan, place, each, names, UNTOUCHED)
        elif points or place.was == UPSTREAM:
            plan.refused.append(
                f"{each['name']} was made since the pool was adopted;"
                " remove the qube, or rename the dataset away"
            )
    _undo_home(plan, place, found, record.settings)
    plan.change(
        place.container,
        "nothing is left of the adoption",
        [inherit(place.container, naming.ADOPTED)],
    )
    return plan


def _undo_qube(
    plan: Plan,
    place: Where,
    about: Mapping[str, Any],
    names: set[str],
    untouched: int,
) -> None:
    dataset, own = about["name"], about.get("own", {})
    qube = last(dataset)
    old = f"{place.old}/{qube}"
    inner = {
        last(each["name"]): each for each in listed(about.get("inner", {}))
    }
    for name in own:
        if not name.startswith(naming.POINTER):
            continue
        volume = name.removeprefix(naming.POINTER)
        record = own.get(naming.ADOPTED_VOLUME + volume, "scratch")
        if record == "scratch":
            plan.refused.append(f"{qube} has been started since: {volume}")
        else:
            why = _since(volume, own[name], record, inner, untouched)
            if why:
                plan.refused.append(f"{volume} of {qube} {why} since")
    changes = list(_given_back(dataset, own, inner))
    plan.change(dataset, "its snapshots get their old names", changes)
    for name, value in own.items():
        volume = name.removeprefix(naming.ADOPTED_VOLUME)
        if volume != name and value.endswith(" ro") and volume in inner:
            # before the record of it goes
            step = Step(
                "set",
                f"{dataset}/{volume}",
                "is read-only again",
                settings={"readonly": "on"},
            )
            plan.steps.insert(len(plan.steps) - 1, step)
    if dataset != old:
        if old in names:
            plan.refused.append(f"{old} exists again; rename it away")
        plan.steps.append(Step("rename", dataset, f"becomes {old}", new=old))


def _since(
    volume: str,
    pointer: str,
    record: str,
    inner: Mapping[str, Any],
    untouched: int,
) -> str:
    """What was done to a volume by our driver; empty if nothing was."""
    zvol = inner.get(volume)
    numbered = re.compile(re.escape(volume) + r"\.[1-9][0-9]*\Z")
    if zvol is None or pointer != "0" or any(map(numbered.match, inner)):
        return "was replaced"
    revisions = [
        s for s in listed(zvol["snapshots"]) if re.match(r"r\d+\Z", s["name"])
    ]
    adopted = [s for s in revisions if naming.ADOPTED in s["own"]]
    count, written, _ = record.split()
    if len(adopted) != len(revisions):
        return "was committed"
    if len(adopted) != int(count) or any(s["leaving"] for s in adopted):
        return "lost a revision"
    if adopted:
        newest = max(adopted, key=lambda s: int(s["name"][1:]))
        if newest["since"] > int(written) + untouched:
            return "was written to"
    return ""


def _given_back(
    dataset: str, own: Mapping[str, str], inner: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    for volume, zvol in sorted(inner.items()):
        target = zvol["name"]
        for snapshot in listed(zvol["snapshots"]):
            was = snapshot["own"].get(naming.ADOPTED)
            full = f"{target}@{snapshot['name']}"
            if was == MADE:
                yield {"what": "destroy", "dataset": full}
            elif was is not None:
                yield inherit(full, naming.ADOPTED)
                yield {
                    "what": "rename",
                    "dataset": target,
                    "name": snapshot["name"],
                    "value": was,
                }
        if naming.ADOPTED_VOLUME + volume in own:
            yield inherit(target, naming.HOLDER)
    for name in sorted(own):
        yield inherit(dataset, name)


def _undo_home(
    plan: Plan,
    place: Where,
    found: Mapping[str, Any],
    before: Mapping[str, str | None],
) -> None:
    about = found.get("home")
    if about is None:
        return
    if place.was == UPSTREAM:
        changes = [{"what": "destroy", "dataset": place.home}]
        plan.change(place.home, "is destroyed, with nothing in it", changes)
        return
    back = {name: value for name, value in before.items() if value is not None}
    if back:
        plan.steps.append(
            Step("set", place.home, "has its settings again", settings=back)
        )
    gone = [name for name, value in before.items() if value is None]
    names = [*(name for name in gone if name in about["set"])]
    names += [naming.BLANK] if naming.BLANK in about["own"] else []
    plan.change(
        place.home,
        "inherits again what it inherited",
        [inherit(place.home, name) for name in names],
    )
