# SPDX-License-Identifier: BSD-2-Clause
"""Recognise worlds that differ only in GUIDs, tags and rising numbers.

The driver keeps its state in ZFS, and no decision depends on the content of a
volume.  So an operation that was stopped at all points of one world is not
stopped again in an equal one.  The same holds for a recovery.
"""

import re
from typing import Any

from qubes_storage_zfs.store import naming

from .gate import Dump
from .world import BASELINE, SNAPSHOT_OF_ADMIN, UNTOUCHED, VOLUMES, World

Shape = tuple[Any, ...]


def shape(world: World, dump: Dump) -> Shape:
    """Return everything that the driver can see of a world.

    The order of generations and revisions replaces their numbers and GUIDs.
    """
    places = _places(world, dump)
    qubes = {vid.split("/")[0] for vid in VOLUMES}
    return (
        world.keep,
        world.number % 2,
        tuple(sorted(world.running)),
        tuple(sorted(world.sizes.items())),
        tuple(
            (qube, *_own(world, dump, qube))
            for qube in sorted(qubes)
            if f"{world.pool.qubes_root}/{qube}" in dump
        ),
        tuple(
            (place, _generation(world, dump, name, places))
            for name, place in sorted(places.items(), key=lambda pair: pair[1])
            if name in dump
        ),
    )


def _places(world: World, dump: Dump) -> dict[str, Shape]:
    """Map generations and snapshots to their volume and their rank in it."""
    places: dict[str, Shape] = {}
    for vid in VOLUMES:
        where = naming.volume_name(world.pool.qubes_root, vid)
        numbers = sorted(world.generations(dump, vid))
        revisions = []
        for rank, number in enumerate(numbers):
            name = where.generation(number)
            # garbage collection treats number 0 differently
            places[name] = (vid, rank, "later" if number else "first")
            for short in dump[name]["snapshots"]:
                if re.fullmatch(r"r\d+", short):
                    revision = naming.revision_number(short)
                    revisions.append((revision, rank, f"{name}@{short}"))
                else:
                    kinds = {SNAPSHOT_OF_ADMIN: "admin", BASELINE: "beginning"}
                    kind = kinds.get(short, "other")
                    places[f"{name}@{short}"] = (vid, rank, kind)
        for order, (_, rank, snapshot) in enumerate(sorted(revisions)):
            places[snapshot] = (vid, rank, f"{order:03}")
    return places


def _own(world: World, dump: Dump, qube: str) -> Shape:
    """Return the local properties of a qube, its pointers by rank."""
    own: list[Shape] = []
    dataset = f"{world.pool.qubes_root}/{qube}"
    for name, value in sorted(dump[dataset]["own"].items()):
        if name.startswith(naming.POINTER):
            number, _, details = value.partition(" ")
            vid = f"{qube}/{name.removeprefix(naming.POINTER)}"
            numbers = sorted(world.generations(dump, vid))
            present = int(number) in numbers
            rank = numbers.index(int(number)) if present else None
            # a disposable volume that is blank at each start
            disposable = details if details.startswith("scratch") else ""
            own.append((name, rank, disposable))
        else:
            own.append((name,))
    return tuple(own)


def _generation(
    world: World, dump: Dump, name: str, places: dict[str, Shape]
) -> Shape:
    item = dump[name]
    written = item.get("written")
    return (
        tuple(sorted(item["own"])),
        places.get(item.get("origin"), item.get("origin")),
        item.get("volsize"),
        None if written is None else (written > 0, written > UNTOUCHED),
        tuple(
            sorted(
                (*places[f"{name}@{short}"], snapshot["leaving"])
                for short, snapshot in item["snapshots"].items()
            )
        ),
    )
