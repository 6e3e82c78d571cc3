# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: what there is after a recovery, asked of ZFS and the devices.

Nothing here asks the driver what is garbage; it is worked out once more, from
what doc/design.md says of the names on disk.
"""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import libzfs_core

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.state import StateQuery
from qubes_storage_zfs.zfs import devices

from ..support.zpools import open_device, sh
from . import tags
from .guest import NAME, SIZE, House

HOME = f"{NAME}/vm"
#: seconds
NODE_LIMIT = 60.0
#: what a volume that nobody keeps is taken back to
BEGINNING = "s1"

_EVERYTHING = b"""
local out = {}
local function look(ds)
    local mine = {}
    for name, value, source in zfs.list.user_properties(ds) do
        if source == ds then
            mine[name] = value
        end
    end
    out[ds] = {
        guid = (zfs.get_prop(ds, "guid")),
        type = (zfs.get_prop(ds, "type")),
        origin = (zfs.get_prop(ds, "origin")),
        mine = mine,
    }
    for snapshot in zfs.list.snapshots(ds) do
        out[snapshot] = {
            guid = (zfs.get_prop(snapshot, "guid")),
            type = "snapshot",
            leaving = (zfs.get_prop(snapshot, "defer_destroy")),
        }
    end
    for child in zfs.list.children(ds) do
        look(child)
    end
end
look((...).argv.home)
return out
"""
_ZVOL = re.compile(r"(?P<volume>[^.]+)(\.[1-9][0-9]*)?")

#: name of a dataset or snapshot -> what is known of it
Things = dict[str, dict[str, Any]]


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _text(value[key]) for key in value}
    return value.decode() if isinstance(value, bytes) else value


def everything() -> Things:
    """All that is below the container, at one instant."""
    answer = libzfs_core.lzc_channel_program_nosync(
        NAME.encode(), _EVERYTHING, params={b"home": HOME.encode()}
    )
    return dict(_text(answer))


def differences(first: Things, second: Things) -> list[str]:
    """Between what a recovery left and what the next one left."""
    return [
        f"{name}: {first.get(name)}, then {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def leftovers(things: Things) -> list[str]:
    """What nothing needs."""
    wrong, volumes, needed = [], set(), {HOME}
    for dataset, thing in things.items():
        for name, value in thing.get("mine", {}).items():
            if name.startswith(naming.POINTER):
                volume = name.removeprefix(naming.POINTER)
                number = value.split()[0]
                suffix = f".{number}" if number != "0" else ""
                zvol = f"{dataset}/{volume}{suffix}"
                volumes.add((dataset, volume))
                needed |= {dataset, zvol}
                if zvol not in things:
                    wrong.append(f"{dataset}: pointer {name}={value}")
                if " scratch" in value:
                    needed.add(f"{zvol}@{BEGINNING}")
    for name, thing in things.items():
        zvol, _, snapshot = name.partition("@")
        dataset, _, last = zvol.rpartition("/")
        match = _ZVOL.fullmatch(last)
        if (
            match
            and re.fullmatch(r"r[1-9][0-9]*", snapshot)
            and thing["leaving"] != "on"
            and (dataset, match["volume"]) in volumes
        ):
            needed |= {name, zvol}
    # what was cloned from stays, with its qube's dataset
    while (
        more := {
            each
            for zvol in needed & things.keys()
            if (origin := things[zvol].get("origin"))
            for each in (
                origin,
                origin.partition("@")[0],
                origin.rpartition("/")[0],
            )
        }
        - needed
    ):
        needed |= more
    return wrong + sorted(things.keys() - needed)


async def read(path: str) -> list[tuple[str, int]]:
    """The names of the blocks behind a device node, in runs."""
    dataset = devices.dataset_of(path)
    if dataset is not None:
        # udev takes its link away while it looks at the node anew
        await devices.wait_for_link(dataset)

    def whole() -> bytes:
        with open_device(path, os.O_RDONLY) as opened:
            return opened.read(2 * SIZE)

    return tags.packed(tags.names(await asyncio.to_thread(whole)))


def _nodes() -> dict[str, str]:
    """Name of a zvol or snapshot -> the kernel's node; udev's link to it
    comes later."""
    nodes = [f"/dev/{block.name}" for block in Path("/sys/block").glob("zd*")]
    return {
        name: node
        for node in nodes
        if (name := devices.name_of_node(node)) is not None
    }


async def _visible(snapshots: set[str], there: bool) -> dict[str, str]:
    """The snapshots get device nodes, or lose them; all nodes there are.

    One that udev has just open is not taken away, so that is tried again.
    """
    for attempt in range(int(NODE_LIMIT * 5)):
        if attempt % 50 == 0:
            value = "visible" if there else "hidden"
            sh("zfs", "set", "snapdev=" + value, HOME)
        nodes = await asyncio.to_thread(_nodes)
        if snapshots & nodes.keys() == (snapshots if there else set()):
            return nodes
        await asyncio.sleep(0.2)
    raise RuntimeError(f"nodes of snapshots: {sorted(nodes)}")


async def found(house: House) -> dict[str, Any]:
    """What is to be judged: volumes (vid -> its committed states), current
    (vid -> its content), and what zpool says."""
    names = {}
    answer: dict[str, Any] = {"volumes": {}, "current": {}}
    for volume in house.pool.list_volumes():
        if not volume.save_on_stop:
            continue
        asked = StateQuery(revisions=True)
        state = await volume.store.state(volume.where, asked)
        names[volume.vid] = [item.snapshot for item in state.revisions]
        path = volume.path
        assert path is not None, volume.vid
        answer["current"][volume.vid] = await read(path)
    every = {name for snapshots in names.values() for name in snapshots}
    nodes = await _visible(every, True)
    for vid, snapshots in names.items():
        answer["volumes"][vid] = [
            await read(nodes[snapshot]) for snapshot in snapshots
        ]
    await _visible(every, False)
    status = sh("zpool", "status", NAME)
    answer["errors"] = re.findall(r"errors: (.*)", status)[0]
    return answer
