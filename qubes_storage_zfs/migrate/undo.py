# SPDX-License-Identifier: BSD-2-Clause
"""The plan to undo a migration, which is possible until a qube is started.

Pure: the plan follows from the records and from the datasets that ZFS reports.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from ..store import messages, naming
from . import records
from .disk import UNMODIFIED, Dataset, Disk
from .pools import MigratingPool, Origin
from .records import MADE, DiskRecord, Settings, VolumeRecord
from .steps import (
    Change,
    CreateRoot,
    Plan,
    RenameDataset,
    SetProperties,
    destroy,
    inherit,
    rename_snapshot,
)

_REVISION = re.compile(r"r\d+\Z")


def plan_undo(
    pool: MigratingPool,
    record: DiskRecord,
    disk: Disk,
    qubes: Iterable[str],
) -> Plan:
    """Return the plan that restores all names and properties.

    :param record: the record on the container in *disk*
    :param qubes: the qubes with volumes in the pool, according to qubes.xml
    """
    plan, container = Plan(), disk.container
    plan.refused.extend(map(str, records.unexpected(disk)))
    if plan.refused or container is None:
        return plan
    if naming.CLAIM in container.own:
        plan.change(
            pool.container,
            f"is no longer the container of the pool {pool.pool}",
            [inherit(pool.container, naming.CLAIM)],
        )
    if not disk.old_exists:
        plan.steps.append(CreateRoot(pool.old, "is created again"))
    old_names = {dataset.name for dataset in disk.old}
    configured = set(qubes)
    for dataset in disk.moved:
        has_pointer = any(n.startswith(naming.POINTER) for n in dataset.own)
        is_moved = dataset.short_name in configured and not has_pointer
        if naming.MIGRATED in dataset.own or is_moved:
            _undo_qube(plan, pool, dataset, old_names)
        elif has_pointer or pool.origin is Origin.UPSTREAM:
            plan.refuse(messages.UNDO_MADE_SINCE, dataset=dataset.name)
    _undo_root(plan, pool, disk.qubes_root, record.settings)
    plan.change(
        pool.container,
        "loses the record of the migration",
        [inherit(pool.container, naming.MIGRATED)],
    )
    return plan


# --- a qube


def _undo_qube(
    plan: Plan, pool: MigratingPool, dataset: Dataset, old_names: set[str]
) -> None:
    qube, zvols = dataset.short_name, dataset.by_name
    old = f"{pool.old}/{qube}"
    volumes = {
        name.removeprefix(naming.MIGRATED_VOLUME): VolumeRecord.parse(value)
        for name, value in dataset.own.items()
        if name.startswith(naming.MIGRATED_VOLUME)
    }
    for name, pointer in dataset.own.items():
        if not name.startswith(naming.POINTER):
            continue
        volume = name.removeprefix(naming.POINTER)
        record = volumes.get(volume)
        if record is None:
            plan.refuse(messages.UNDO_STARTED, qube=qube, volume=volume)
        elif change := _change_since(volume, pointer, record, zvols):
            plan.refuse(
                messages.UNDO_CHANGED, volume=volume, qube=qube, change=change
            )
    # before the record of it is removed
    for volume, record in volumes.items():
        if record is not None and record.is_read_only and volume in zvols:
            plan.steps.append(
                SetProperties(
                    f"{dataset.name}/{volume}",
                    "is read-only again",
                    {"readonly": "on"},
                )
            )
    changes = list(_reversed_changes(dataset))
    plan.change(dataset.name, "its snapshots get their old names", changes)
    if dataset.name != old:
        if old in old_names:
            plan.refuse(messages.UNDO_OLD_EXISTS, dataset=old)
        plan.steps.append(
            RenameDataset(dataset.name, f"is renamed to {old}", old)
        )


def _change_since(
    volume: str,
    pointer: str,
    record: VolumeRecord,
    zvols: Mapping[str, Dataset],
) -> str:
    """Return how this driver changed a volume; empty if it did not."""
    zvol = zvols.get(volume)
    generation = re.compile(re.escape(volume) + r"\.[1-9][0-9]*\Z")
    if zvol is None or pointer != "0" or any(map(generation.match, zvols)):
        return "was replaced"
    revisions = [s for s in zvol.snapshots if _REVISION.match(s.name)]
    migrated = [s for s in revisions if naming.MIGRATED in s.own]
    if len(migrated) != len(revisions):
        return "was committed"
    if len(migrated) != record.revisions or any(s.is_leaving for s in migrated):
        return "lost a revision"
    if migrated:
        newest = max(migrated, key=lambda s: int(s.name[1:]))
        if newest.written_after > record.written + UNMODIFIED:
            return "was written to"
    return ""


def _reversed_changes(dataset: Dataset) -> Iterator[Change]:
    for volume, zvol in sorted(dataset.by_name.items()):
        for snapshot in zvol.snapshots:
            before = snapshot.own.get(naming.MIGRATED)
            full = f"{zvol.name}@{snapshot.name}"
            if before == MADE:
                yield destroy(full)
            elif before is not None:
                yield inherit(full, naming.MIGRATED)
                yield rename_snapshot(zvol.name, snapshot.name, before)
        if naming.MIGRATED_VOLUME + volume in dataset.own:
            yield inherit(zvol.name, naming.HOLDER)
    for name in sorted(dataset.own):
        yield inherit(dataset.name, name)


# --- the qubes root


def _undo_root(
    plan: Plan,
    pool: MigratingPool,
    qubes_root: Dataset | None,
    before: Settings,
) -> None:
    if qubes_root is None:
        return
    if pool.origin is Origin.UPSTREAM:
        text = "is destroyed, because it is empty"
        plan.change(pool.qubes_root, text, [destroy(pool.qubes_root)])
        return
    restored = {name: v for name, v in before.items() if v is not None}
    if restored:
        plan.steps.append(
            SetProperties(
                pool.qubes_root, "gets its earlier properties again", restored
            )
        )
    inherited = [
        name
        for name, value in before.items()
        if value is None and name in qubes_root.settings
    ]
    if naming.BLANK in qubes_root.own:
        inherited.append(naming.BLANK)
    plan.change(
        pool.qubes_root,
        "inherits the same properties as before",
        [inherit(pool.qubes_root, name) for name in inherited],
    )
