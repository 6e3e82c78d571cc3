# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: read from ZFS and the devices what a recovery left.

This module does not ask the driver what is garbage.  It works this out by the
description of the names on disk in doc/design.md.
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
from .guest import NAME, SIZE, Qubesd

HOME = f"{NAME}/vm"
#: seconds to wait for device nodes
NODE_LIMIT = 60.0
#: the baseline snapshot that a disposable volume is reset to
BASELINE = "s1"

_EVERYTHING = b"""
local out = {}
local function visit(ds)
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
        visit(child)
    end
end
visit((...).argv.home)
return out
"""
_ZVOL = re.compile(r"(?P<volume>[^.]+)(\.[1-9][0-9]*)?")

#: name of a dataset or snapshot -> its properties
Datasets = dict[str, dict[str, Any]]


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _text(value[key]) for key in value}
    return value.decode() if isinstance(value, bytes) else value


def everything() -> Datasets:
    """Return all that is below the qubes root, at one instant."""
    answer = libzfs_core.lzc_channel_program_nosync(
        NAME.encode(), _EVERYTHING, params={b"home": HOME.encode()}
    )
    return dict(_text(answer))


def differences(first: Datasets, second: Datasets) -> list[str]:
    """Return how the results of two recoveries differ."""
    return [
        f"{name}: {first.get(name)}, then {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def garbage(datasets: Datasets) -> list[str]:
    """Return the datasets and snapshots that no volume needs."""
    wrong, volumes, needed = [], set(), {HOME}
    for dataset, item in datasets.items():
        for name, value in item.get("mine", {}).items():
            if name.startswith(naming.POINTER):
                volume = name.removeprefix(naming.POINTER)
                number = value.split()[0]
                suffix = f".{number}" if number != "0" else ""
                zvol = f"{dataset}/{volume}{suffix}"
                volumes.add((dataset, volume))
                needed |= {dataset, zvol}
                if zvol not in datasets:
                    wrong.append(f"{dataset}: pointer {name}={value}")
                if " scratch" in value:
                    needed.add(f"{zvol}@{BASELINE}")
    for name, item in datasets.items():
        zvol, _, snapshot = name.partition("@")
        dataset, _, last = zvol.rpartition("/")
        match = _ZVOL.fullmatch(last)
        if (
            match
            and re.fullmatch(r"r[1-9][0-9]*", snapshot)
            and item["leaving"] != "on"
            and (dataset, match["volume"]) in volumes
        ):
            needed |= {name, zvol}
    # the origin of a clone is kept, with the dataset of its qube
    while (
        more := {
            required
            for zvol in needed & datasets.keys()
            if (origin := datasets[zvol].get("origin"))
            for required in (
                origin,
                origin.partition("@")[0],
                origin.rpartition("/")[0],
            )
        }
        - needed
    ):
        needed |= more
    return wrong + sorted(datasets.keys() - needed)


async def read(path: str) -> list[tuple[str, int]]:
    """Return the names of the blocks behind a device node, in runs."""
    dataset = devices.dataset_of(path)
    if dataset is not None:
        # udev removes the link while it processes the node again
        await devices.wait_for_link(dataset)

    def whole() -> bytes:
        with open_device(path, os.O_RDONLY) as opened:
            return opened.read(2 * SIZE)

    return tags.packed(tags.names(await asyncio.to_thread(whole)))


def _nodes() -> dict[str, str]:
    """Return the name of each zvol or snapshot with a node -> the node.

    The node is the kernel's; udev makes its link later.
    """
    nodes = [f"/dev/{block.name}" for block in Path("/sys/block").glob("zd*")]
    return {
        name: node
        for node in nodes
        if (name := devices.name_of_node(node)) is not None
    }


async def _visible(snapshots: set[str], is_visible: bool) -> dict[str, str]:
    """Show or hide the device nodes of snapshots; return all nodes.

    ZFS does not remove a node that udev has open, so this is repeated.
    """
    for attempt in range(int(NODE_LIMIT * 5)):
        if attempt % 50 == 0:
            value = "visible" if is_visible else "hidden"
            sh("zfs", "set", "snapdev=" + value, HOME)
        nodes = await asyncio.to_thread(_nodes)
        if snapshots & nodes.keys() == (snapshots if is_visible else set()):
            return nodes
        await asyncio.sleep(0.2)
    raise RuntimeError(f"nodes of snapshots: {sorted(nodes)}")


async def observed(qubesd: Qubesd) -> dict[str, Any]:
    """Return what the host has to judge.

    This is volumes (vid -> committed states), current (vid -> content) and
    errors (the line of "zpool status").
    """
    names = {}
    answer: dict[str, Any] = {"volumes": {}, "current": {}}
    for volume in qubesd.pool.list_volumes():
        if not volume.save_on_stop:
            continue
        asked = StateQuery(revisions=True)
        state = await volume.store.state(volume.where, asked)
        names[volume.vid] = [item.snapshot for item in state.revisions]
        path = volume.path
        assert path is not None, volume.vid
        answer["current"][volume.vid] = await read(path)
    all_snapshots = {name for snapshots in names.values() for name in snapshots}
    nodes = await _visible(all_snapshots, True)
    for vid, snapshots in names.items():
        answer["volumes"][vid] = [
            await read(nodes[snapshot]) for snapshot in snapshots
        ]
    await _visible(all_snapshots, False)
    status = sh("zpool", "status", NAME)
    answer["errors"] = re.findall(r"errors: (.*)", status)[0]
    return answer
