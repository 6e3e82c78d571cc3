"""What it takes to adopt a pool of another layout in place.

What was done already is in no list of steps, so an adoption that was cut short
goes on when it is planned again.  Each qube is moved by one rename and taken
over by one channel program, so it is before or after.  What undoing needs is
written down in ZFS in that program: see ``layout.ADOPTED``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..store import naming, policy
from .records import SETTINGS
from .steps import (
    HOME_SETTINGS,
    MADE,
    OLDER,
    THEIRS,
    UNTOUCHED,
    UPSTREAM,
    Known,
    Plan,
    Step,
    Where,
    inherit,
    last,
    listed,
    set_property,
)

_LEFTOVERS = (".exported", ".importing", ".tmp")
_OURS = re.compile(r"(r[1-9][0-9]*|x[1-9][0-9]*|s1)\Z")
#: bytes; more than a zvol refers to that nothing was written to (90112 were
#: measured), so that the janitor does not take it for blank
_BLANK = 131072


class Adoption:
    """Plans it.

    :param found: what adoptable.lua gives
    :param mark: what says that a zvol is ours: ``holder_mark()``
    :ivar settings: properties of the qubes root that undoing restores; None: an
        earlier run, which was cut short, has recorded them
    """

    def __init__(
        self,
        place: Where,
        volumes: Sequence[Known],
        found: Mapping[str, Any],
        mark: str,
    ) -> None:
        self.place, self.found, self.mark = place, found, mark
        self.plan = Plan()
        self.settings: dict[str, str | None] | None = None
        self.qubes: dict[str, dict[str, Known]] = {}
        for volume in volumes:
            self._sort(volume)

    def _sort(self, volume: Known) -> None:
        place = self.place
        start = f"{place.old}/{volume.qube}/"
        name = volume.vid.removeprefix(start)
        if not volume.vid.startswith(start):
            self._refuse(
                f"the volume {volume.name} of {volume.qube} has the vid"
                f" {volume.vid!r}, which does not begin with {start}"
            )
            return
        try:
            naming.volume_name(place.home, f"{volume.qube}/{name}")
        except naming.BadName as exc:
            self._refuse(str(exc))
            return
        self.qubes.setdefault(volume.qube, {})[name] = volume

    def _refuse(self, text: str) -> None:
        self.plan.refused.append(text)

    def _leave(self, text: str) -> None:
        self.plan.left.append(text)

    def __call__(self) -> Plan:
        if self._container():
            self._home()
            for qube in sorted(self.qubes):
                self._qube(qube)
            self._others()
            place = self.place
            if self.found["container"]["own"].get(naming.OWNER) is None:
                self.plan.change(
                    place.container,
                    f"it becomes the container of the pool {place.pool}",
                    [set_property(place.container, naming.OWNER, place.pool)],
                )
        return self.plan

    def _container(self) -> bool:
        place, about = self.place, self.found.get("container")
        if about is None or about["type"] != "filesystem":
            self._refuse(f"there is no filesystem {place.container}")
            return False
        owner = about["own"].get(naming.OWNER, place.pool)
        if owner != place.pool:
            self._refuse(f"{place.container} belongs to the pool {owner}")
        return True

    def _home(self) -> None:
        """The intent is written down first, then home is made or set."""
        place, steps = self.place, self.plan.steps
        about = self.found.get("home")
        record = self.found["container"]["own"].get(naming.ADOPTED)
        if place.was == UPSTREAM and record is None and about is not None:
            self._refuse(
                f"{place.home} exists, and qubes are to be put there; rename it"
                " (if it is a qube's, clone that under another name)"
            )
            return
        if about is None and place.was == OLDER:
            self._refuse(f"there is no dataset {place.home}")
            return
        has = about["set"] if about is not None else {}
        lacks = {k: v for k, v in HOME_SETTINGS.items() if has.get(k) != v}
        if record is None:
            self.settings = dict(self._settings_before(has, lacks))
            value = json.dumps(
                {
                    "was": place.was,
                    "old": place.inside,
                    "set": self.settings,
                }
            )
            self.plan.change(
                place.container,
                "what it was is written down",
                [set_property(place.container, naming.ADOPTED, value)],
            )
        if about is None:
            steps.append(Step("create", place.home, "is made"))
        elif lacks:
            text = "dom0 will not look into what is below"
            steps.append(Step("set", place.home, text, settings=lacks))

    def _settings_before(
        self, has: Mapping[str, str], lacks: Iterable[str]
    ) -> Iterator[tuple[str, str | None]]:
        """What undoing can set again: harmless values only."""
        for name in lacks:
            before = has.get(name)
            if before in SETTINGS[name]:
                yield name, before
            else:
                self._leave(
                    f"{name}={before} of {self.place.home}, if adopting is"
                    f" undone: it is {HOME_SETTINGS[name]} from now on"
                )

    def _qube(self, qube: str) -> None:
        place = self.place
        old, new = f"{place.old}/{qube}", f"{place.home}/{qube}"
        before, after = self._at("old", old), self._at("moved", new)
        if old != new and before is not None and after is not None:
            self._refuse(f"{old} and {new} both exist; rename one of them away")
            return
        about = before or after
        if about is None:
            self._missing(qube, {})
            return
        if about["type"] != "filesystem":
            self._refuse(f"{about['name']} is a {about['type']}, not a qube's")
            return
        inner = {last(each["name"]): each for each in listed(about["inner"])}
        self._missing(qube, inner)
        for each in (about, *inner.values()):
            self._check_settings(each)
        if naming.ADOPTED in about["own"]:
            return
        changes = list(self._taken(qube, about, inner))
        if about["name"] != new:
            self.plan.steps.append(
                Step("rename", old, f"becomes {new}", new=new)
            )
        self.plan.change(new, self._summary(qube, inner), changes)

    def _at(self, which: str, dataset: str) -> dict[str, Any] | None:
        for each in listed(self.found[which]):
            if each["name"] == dataset:
                return each
        return None

    def _missing(self, qube: str, inner: Mapping[str, Any]) -> None:
        for name, volume in self.qubes[qube].items():
            if volume.persistent(self.place.was) and name not in inner:
                self._leave(
                    f"the volume {name} of {qube} is not on disk: {volume.vid}"
                )

    def _taken(
        self, qube: str, about: Mapping[str, Any], inner: Mapping[str, Any]
    ) -> Iterator[dict[str, str]]:
        """The changes that make it a qube of ours, at its new name."""
        new = f"{self.place.home}/{qube}"
        known = self.qubes[qube]
        for name, zvol in sorted(inner.items()):
            if name not in known:
                self._orphan(zvol)
            elif zvol["type"] != "volume":
                self._refuse(f"{zvol['name']} is no volume")
            elif known[name].persistent(self.place.was):
                yield from self._kept(new, name, known[name], zvol)
            else:
                yield from self._scratch(new, name, zvol)
        attributes = {
            name: {
                key: volume.attributes[key]
                for key in self.place.dropped
                if key in volume.attributes
            }
            for name, volume in known.items()
        }
        value = json.dumps({k: v for k, v in attributes.items() if v})
        yield set_property(new, naming.ADOPTED, value)

    def _check_settings(self, about: Mapping[str, Any]) -> None:
        for name, wanted in policy.SAFE.items():
            value = about["set"].get(name, wanted)
            if value != wanted:
                self._refuse(
                    f"{about['name']} has {name}={value}, so that dom0 would"
                    " read what a qube wrote; run 'sudo zfs inherit"
                    f" {name} {about['name']}'"
                )

    def _orphan(self, zvol: Mapping[str, Any]) -> None:
        """The janitor must not take it for garbage of ours."""
        name = zvol["name"]
        blank = zvol["type"] == "volume" and not zvol["snapshots"]
        if re.search(r"\.[1-9][0-9]*\Z", last(name)):
            self._refuse(
                f"qubesd does not know {name}, and its name is such as this"
                " driver gives; rename it"
            )
        elif blank and zvol["logical"] <= _BLANK:
            self._refuse(
                f"qubesd does not know {name}, and hardly anything is in it;"
                f" destroy it, or keep it by 'sudo zfs snapshot {name}@keep'"
            )
        else:
            self._leave(f"qubesd does not know {name}; it stays beside")

    def _kept(
        self, new: str, name: str, volume: Known, zvol: Mapping[str, Any]
    ) -> Iterator[dict[str, str]]:
        target = f"{new}/{name}"
        theirs, others = _theirs(zvol)
        for short in others:
            if _OURS.match(short):
                self._refuse(
                    f"{zvol['name']}@{short} has such a name as this driver"
                    " gives; rename it"
                )
        newest = None
        for number, snapshot in enumerate(theirs, 1):
            newest = f"{target}@r{number}"
            was = snapshot["name"]
            yield {
                "what": "rename",
                "dataset": target,
                "name": was,
                "value": f"r{number}",
            }
            yield set_property(newest, naming.ADOPTED, was)
        if newest is None and volume.snapshots:
            newest = f"{target}@r1"
            yield {"what": "snapshot", "dataset": newest}
            yield set_property(newest, naming.ADOPTED, MADE)
        if newest is not None:
            committed = naming.COMMITTED + name
            yield set_property(new, committed, last(newest))
        since = theirs[-1]["since"] if theirs else 0
        locked = zvol["set"].get("readonly") == "on"
        if locked:
            # rw is qubes.xml's to say; upstream repeated it here
            yield inherit(target, "readonly")
        count = len(theirs) or int(newest is not None)
        value = f"{count} {since} {'ro' if locked else 'rw'}"
        yield set_property(target, naming.HOLDER, self.mark)
        yield set_property(new, naming.ADOPTED_VOLUME + name, value)
        yield set_property(new, naming.POINTER + name, "0")

    def _scratch(
        self, new: str, name: str, zvol: Mapping[str, Any]
    ) -> Iterator[dict[str, str]]:
        """Nothing but our mark: the janitor collects it, when qubesd runs
        again."""
        theirs, others = _theirs(zvol)
        if theirs or others:
            self._refuse(
                f"{zvol['name']} has snapshots, though qubesd says that its"
                " content is not kept; destroy these if that is so"
            )
        yield set_property(f"{new}/{name}", naming.HOLDER, self.mark)
        yield set_property(new, naming.ADOPTED_VOLUME + name, "scratch")

    def _summary(self, qube: str, inner: Mapping[str, Any]) -> str:
        words = []
        for name, volume in sorted(self.qubes[qube].items()):
            if name not in inner or inner[name]["type"] != "volume":
                continue
            if not volume.persistent(self.place.was):
                words.append(f"{name} goes, as at each start")
                continue
            theirs, _ = _theirs(inner[name])
            older = len(theirs) - 1
            changed = theirs and theirs[-1]["since"] > UNTOUCHED
            words.append(
                f"{name} is taken over"
                + (f" with {older} older revisions" if older > 0 else "")
                + (", not yet committed" if changed else "")
            )
        return "; ".join(words) or "has no volume on disk"

    def _others(self) -> None:
        """What is no qube's that qubesd knows stays as it is."""
        place = self.place
        for each in listed(self.found["old"]):
            name = each["name"]
            inside = last(name)
            if name == place.home or inside in self.qubes:
                continue
            if inside in _LEFTOVERS:
                if listed(each.get("inner", {})):
                    self._leave(f"{name} holds what upstream's driver left")
            elif inside != "import" or place.was == UPSTREAM:
                self._leave(f"qubesd knows nothing that is in {name}")


def _theirs(
    zvol: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Committed states and revisions, oldest first; names of the others.

    What goes with its last clone is neither.
    """
    found = [s for s in listed(zvol["snapshots"]) if not s["leaving"]]
    theirs = [s for s in found if THEIRS.match(s["name"])]
    # of one transaction group: a revision before the committed state
    theirs.sort(
        key=lambda s: (s["createtxg"], s["name"].startswith("qubes-clean"))
    )
    return theirs, [s["name"] for s in found if s not in theirs]
