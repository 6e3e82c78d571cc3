# SPDX-License-Identifier: BSD-2-Clause
"""The plan to migrate a pool in place.

Pure: the plan follows from qubes.xml and from the datasets that ZFS reports.
Steps that an earlier run completed are not planned again, so an interrupted
migration continues with a new plan.  One rename moves a qube, and one channel
program migrates it.  So after a crash, each qube has its old or its new state.
That program also records what undoing needs; see records.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..store import messages, naming, policy
from .disk import UNMODIFIED, Dataset, Disk, Snapshot
from .pools import ConfiguredVolume, MigratingPool, Origin
from .records import (
    MADE,
    SETTINGS,
    UPSTREAM_SNAPSHOT,
    DiskRecord,
    QubeRecord,
    VolumeRecord,
)
from .steps import (
    Change,
    CreateRoot,
    Plan,
    RenameDataset,
    SetProperties,
    inherit,
    rename_snapshot,
    set_property,
    take_snapshot,
)

#: filesystems that upstream's driver creates for its own use
_TEMPORARY = (".exported", ".importing", ".tmp")
#: names of snapshots that this driver gives
_OUR_SNAPSHOT = re.compile(r"(r[1-9][0-9]*|x[1-9][0-9]*|s1)\Z")
#: the end of the name of a generation
_OUR_GENERATION = re.compile(r"\.[1-9][0-9]*\Z")
#: bytes; more than a blank zvol references (90112 were measured), so garbage
#: collection does not take such a zvol for a blank one
_NEARLY_EMPTY = 131072

SETTING_CHANGES = (
    "{property}={value} of {dataset} becomes {new}, and an undo does not"
    " restore it"
)
VOLUME_MISSING = "the volume {volume} of {qube} is not on disk: {vid}"
UNKNOWN_STAYS = "qubesd does not know {dataset}, which is left as it is"
TEMPORARY_STAYS = "{dataset} has temporary datasets of upstream's driver"
STRANGERS_STAY = "qubesd has no volume in {dataset}"


def plan_migration(
    pool: MigratingPool,
    volumes: Sequence[ConfiguredVolume],
    disk: Disk,
    mark: str,
) -> Plan:
    """Return the plan; its ``refused`` has the reasons not to carry it out.

    :param volumes: the volumes of the pool, as qubes.xml has them
    :param mark: the holder mark of this process
    """
    return _Planner(pool, volumes, disk, mark).plan()


def committed_snapshots(zvol: Dataset) -> tuple[list[Snapshot], list[str]]:
    """Return upstream's snapshots, oldest first, and the names of others.

    A snapshot that ZFS destroys together with its last clone is neither.
    """
    lasting = [s for s in zvol.snapshots if not s.is_leaving]
    committed = [s for s in lasting if UPSTREAM_SNAPSHOT.match(s.name)]
    # in one transaction group, a revision comes before the committed state
    committed.sort(
        key=lambda s: (s.createtxg, s.name.startswith("qubes-clean"))
    )
    return committed, [s.name for s in lasting if s not in committed]


def _by_qube(
    pool: MigratingPool, volumes: Sequence[ConfiguredVolume], plan: Plan
) -> dict[str, dict[str, ConfiguredVolume]]:
    """Return qube -> name -> volume; refuse vids that no volume can have."""
    qubes: dict[str, dict[str, ConfiguredVolume]] = {}
    for volume in volumes:
        start = f"{pool.old}/{volume.qube}/"
        name = volume.vid.removeprefix(start)
        if not volume.vid.startswith(start):
            plan.refuse(
                messages.ADOPT_VID,
                volume=volume.name,
                qube=volume.qube,
                vid=volume.vid,
                start=start,
            )
            continue
        try:
            naming.volume_name(pool.qubes_root, f"{volume.qube}/{name}")
        except naming.BadName as exc:
            plan.refuse(str(exc))
        else:
            qubes.setdefault(volume.qube, {})[name] = volume
    return qubes


class _Planner:
    """Plans the migration of one pool.

    plan_migration() creates one, and plan() is called once.
    """

    def __init__(
        self,
        pool: MigratingPool,
        volumes: Sequence[ConfiguredVolume],
        disk: Disk,
        mark: str,
    ) -> None:
        self._pool, self._disk, self._mark = pool, disk, mark
        self._plan = Plan()
        self._qubes = _by_qube(pool, volumes, self._plan)

    def plan(self) -> Plan:
        """Return the plan."""
        plan, pool, container = self._plan, self._pool, self._disk.container
        if container is None or not container.is_filesystem:
            plan.refuse(messages.ADOPT_NO_FILESYSTEM, dataset=pool.container)
            return plan
        claim = container.own.get(naming.CLAIM)
        if claim not in (None, pool.pool):
            plan.refuse(
                messages.ADOPT_CLAIMED, dataset=pool.container, pool=claim
            )
            return plan
        self._plan_root(container.own.get(naming.MIGRATED))
        for qube in sorted(self._qubes):
            self._plan_qube(qube)
        self._leave_others()
        if claim is None:
            plan.change(
                pool.container,
                f"becomes the container of the pool {pool.pool}",
                [set_property(pool.container, naming.CLAIM, pool.pool)],
            )
        return plan

    # --- the qubes root

    def _plan_root(self, record: str | None) -> None:
        """Plan the record first, then the qubes root or its settings."""
        pool, plan, qubes_root = self._pool, self._plan, self._disk.qubes_root
        is_upstream = pool.origin is Origin.UPSTREAM
        if is_upstream and record is None and qubes_root is not None:
            plan.refuse(messages.ADOPT_HOME_EXISTS, dataset=pool.qubes_root)
            return
        if qubes_root is None and not is_upstream:
            plan.refuse(messages.ADOPT_NO_DATASET, dataset=pool.qubes_root)
            return
        before = qubes_root.settings if qubes_root is not None else {}
        changed = {
            name: value
            for name, value in policy.ROOT_SETTINGS.items()
            if before.get(name) != value
        }
        if record is None:
            restorable = dict(self._restorable(before, changed))
            plan.record = DiskRecord(pool.origin, pool.inside, restorable)
            plan.change(
                pool.container,
                "gets a record of its present state",
                [
                    set_property(
                        pool.container, naming.MIGRATED, str(plan.record)
                    )
                ],
            )
        if qubes_root is None:
            plan.steps.append(CreateRoot(pool.qubes_root, "is created"))
        elif changed:
            text = "gets the properties that keep dom0 from reading volumes"
            plan.steps.append(SetProperties(pool.qubes_root, text, changed))

    def _restorable(
        self, before: Mapping[str, str], changed: Iterable[str]
    ) -> Iterator[tuple[str, str | None]]:
        """Yield the settings that undoing can restore; see policy.Safety."""
        for name in changed:
            value = before.get(name)
            if value in SETTINGS[name]:
                yield name, value
            else:
                self._plan.leave(
                    SETTING_CHANGES,
                    property=name,
                    value=value,
                    dataset=self._pool.qubes_root,
                    new=policy.ROOT_SETTINGS[name],
                )

    # --- a qube

    def _plan_qube(self, qube: str) -> None:
        pool, plan = self._pool, self._plan
        old, new = f"{pool.old}/{qube}", f"{pool.qubes_root}/{qube}"
        before = _dataset_in(self._disk.old, old)
        after = _dataset_in(self._disk.moved, new)
        if old != new and before is not None and after is not None:
            plan.refuse(messages.ADOPT_BOTH, old=old, new=new)
            return
        dataset = before or after
        if dataset is None:
            self._leave_missing(qube, {})
            return
        if not dataset.is_filesystem:
            plan.refuse(
                messages.ADOPT_NOT_A_QUBE,
                dataset=dataset.name,
                type=dataset.type,
            )
            return
        self._leave_missing(qube, dataset.by_name)
        for item in (dataset, *dataset.by_name.values()):
            self._check_settings(item)
        if naming.MIGRATED in dataset.own:
            return
        changes = list(self._changes_of_qube(qube, dataset))
        if dataset.name != new:
            plan.steps.append(RenameDataset(old, f"is renamed to {new}", new))
        plan.change(new, self._summary(qube, dataset), changes)

    def _leave_missing(self, qube: str, zvols: Mapping[str, Dataset]) -> None:
        for name, volume in self._qubes[qube].items():
            if volume.is_persistent(self._pool.origin) and name not in zvols:
                self._plan.leave(
                    VOLUME_MISSING, volume=name, qube=qube, vid=volume.vid
                )

    def _check_settings(self, dataset: Dataset) -> None:
        for name, required in policy.SAFE.items():
            value = dataset.settings.get(name, required)
            if value != required:
                self._plan.refuse(
                    messages.ADOPT_UNSAFE,
                    dataset=dataset.name,
                    property=name,
                    value=value,
                )

    def _changes_of_qube(self, qube: str, dataset: Dataset) -> Iterator[Change]:
        """Yield the changes that migrate a qube, after it was moved."""
        new = f"{self._pool.qubes_root}/{qube}"
        volumes = self._qubes[qube]
        for name, zvol in sorted(dataset.by_name.items()):
            if name not in volumes:
                self._check_unknown(zvol)
            elif not zvol.is_volume:
                self._plan.refuse(messages.ADOPT_NO_VOLUME, dataset=zvol.name)
            elif volumes[name].is_persistent(self._pool.origin):
                yield from self._changes_of_volume(new, name, zvol)
            else:
                yield from self._changes_of_disposable(new, name, zvol)
        dropped = {
            name: {
                key: volume.attributes[key]
                for key in self._pool.dropped
                if key in volume.attributes
            }
            for name, volume in volumes.items()
        }
        record = QubeRecord({k: v for k, v in dropped.items() if v})
        yield set_property(new, naming.MIGRATED, str(record))

    def _check_unknown(self, zvol: Dataset) -> None:
        """Refuse a dataset that garbage collection might destroy."""
        name, is_empty = zvol.name, zvol.is_volume and not zvol.snapshots
        if _OUR_GENERATION.search(zvol.short_name):
            self._plan.refuse(messages.ADOPT_OUR_NAME, dataset=name)
        elif is_empty and zvol.logical <= _NEARLY_EMPTY:
            self._plan.refuse(messages.ADOPT_NEARLY_EMPTY, dataset=name)
        else:
            self._plan.leave(UNKNOWN_STAYS, dataset=name)

    # --- a volume

    def _changes_of_volume(
        self, new: str, name: str, zvol: Dataset
    ) -> Iterator[Change]:
        """Yield the changes that migrate a volume with its revisions.

        :param new: the qube's dataset, after it was moved
        """
        target = f"{new}/{name}"
        volume = self._qubes[new.rpartition("/")[2]][name]
        committed, others = committed_snapshots(zvol)
        for short in others:
            if _OUR_SNAPSHOT.match(short):
                full = f"{zvol.name}@{short}"
                self._plan.refuse(messages.ADOPT_OUR_SNAPSHOT, snapshot=full)
        for number, snapshot in enumerate(committed, 1):
            yield rename_snapshot(target, snapshot.name, f"r{number}")
            yield set_property(
                f"{target}@r{number}", naming.MIGRATED, snapshot.name
            )
        count = len(committed)
        if not committed and volume.has_revisions:
            count = 1
            yield take_snapshot(f"{target}@r1")
            yield set_property(f"{target}@r1", naming.MIGRATED, MADE)
        if count:
            yield set_property(new, naming.COMMITTED + name, f"{name}@r{count}")
        is_read_only = zvol.settings.get("readonly") == "on"
        if is_read_only:
            # upstream repeats here what qubes.xml says about rw
            yield inherit(target, "readonly")
        written = committed[-1].written_after if committed else 0
        record = VolumeRecord(count, written, is_read_only)
        yield set_property(target, naming.HOLDER, self._mark)
        yield set_property(new, naming.MIGRATED_VOLUME + name, str(record))
        yield set_property(new, naming.POINTER + name, "0")

    def _changes_of_disposable(
        self, new: str, name: str, zvol: Dataset
    ) -> Iterator[Change]:
        """Yield the holder mark alone: the zvol is garbage then."""
        if any(committed_snapshots(zvol)):
            self._plan.refuse(messages.ADOPT_HAS_SNAPSHOTS, dataset=zvol.name)
        yield set_property(f"{new}/{name}", naming.HOLDER, self._mark)
        record = VolumeRecord.DISPOSABLE
        yield set_property(new, naming.MIGRATED_VOLUME + name, record)

    # --- texts

    def _summary(self, qube: str, dataset: Dataset) -> str:
        zvols = dataset.by_name
        texts = []
        for name, volume in sorted(self._qubes[qube].items()):
            if name not in zvols or not zvols[name].is_volume:
                continue
            if not volume.is_persistent(self._pool.origin):
                texts.append(f"{name} is discarded, as at each start")
                continue
            committed, _ = committed_snapshots(zvols[name])
            older = len(committed) - 1
            is_dirty = committed and committed[-1].written_after > UNMODIFIED
            revisions = "revision" if older == 1 else "revisions"
            texts.append(
                f"{name} is migrated"
                + (f" with {older} older {revisions}" if older > 0 else "")
                + (", with uncommitted changes" if is_dirty else "")
            )
        return "; ".join(texts) or "has no volume on disk"

    def _leave_others(self) -> None:
        """Name the datasets that belong to no qube in qubes.xml."""
        for dataset in self._disk.old:
            name, short = dataset.name, dataset.short_name
            if name == self._pool.qubes_root or short in self._qubes:
                continue
            if short in _TEMPORARY:
                if dataset.children:
                    self._plan.leave(TEMPORARY_STAYS, dataset=name)
            elif short != "import" or self._pool.origin is Origin.UPSTREAM:
                self._plan.leave(STRANGERS_STAY, dataset=name)


def _dataset_in(datasets: Sequence[Dataset], name: str) -> Dataset | None:
    return next((item for item in datasets if item.name == name), None)
