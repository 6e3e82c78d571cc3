# SPDX-License-Identifier: BSD-2-Clause
"""Plans on a disk in memory: carried out, undone and interrupted."""

import argparse
import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_storage_zfs.migrate import records, steps
from qubes_storage_zfs.migrate.disk import (
    SETTINGS,
    UNMODIFIED,
    Dataset,
    Disk,
    Snapshot,
)
from qubes_storage_zfs.migrate.errors import Refused
from qubes_storage_zfs.migrate.plan import plan_migration
from qubes_storage_zfs.migrate.pools import (
    ConfiguredVolume,
    MigratingPool,
    Origin,
    migrating_pool,
)
from qubes_storage_zfs.migrate.steps import Kind
from qubes_storage_zfs.migrate.undo import plan_undo
from qubes_storage_zfs.store import naming, policy
from qubes_storage_zfs.tools import adopt, qubes_xml
from qubes_storage_zfs.tools.common import Failed

POOL = {"name": "vault", "driver": "zfs", "container": "tank/q"}
#: no deadline, because the host may be busy
PATIENT = settings(deadline=None)
OLDER = {**POOL, "driver": "zfs_zvol"}


class Memory:
    """Datasets by name, which a step changes as ZFS would."""

    def __init__(self, *datasets):
        self.datasets = {dataset.name: dataset for dataset in datasets}

    def _children(self, name):
        return [
            dataclasses.replace(d, children=tuple(self._children(d.name)))
            for d in self.datasets.values()
            if d.name.rpartition("/")[0] == name
        ]

    def _children_of_root(self, name):
        return [
            child if child.is_filesystem else Dataset(child.name, child.type)
            for child in self._children(name)
        ]

    def disk(self, pool):
        get = self.datasets.get
        moved = self._children_of_root(pool.qubes_root)
        return Disk(
            get(pool.container),
            get(pool.qubes_root),
            pool.old in self.datasets,
            (
                moved
                if pool.old == pool.qubes_root
                else self._children_of_root(pool.old)
            ),
            moved,
        )

    def _update(self, name, **fields):
        self.datasets[name] = dataclasses.replace(self.datasets[name], **fields)

    def carry_out(self, step):
        name = step.dataset
        if isinstance(step, steps.CreateRoot):
            assert name not in self.datasets
            settings = dict(policy.ROOT_SETTINGS)
            self.datasets[name] = Dataset(name, "filesystem", settings=settings)
        elif isinstance(step, steps.SetProperties):
            settings = {**self.datasets[name].settings, **step.settings}
            self._update(name, settings=settings)
        elif isinstance(step, steps.RenameDataset):
            assert step.new not in self.datasets
            for old in list(self.datasets):
                if f"{old}/".startswith(f"{name}/"):
                    new = step.new + old[len(name) :]
                    dataset = self.datasets.pop(old)
                    self.datasets[new] = dataclasses.replace(dataset, name=new)
        else:
            for change in step.changes:
                self._change(change)

    def _change(self, change):
        name, _, short = change.dataset.partition("@")
        dataset = self.datasets[name]
        if change.kind is Kind.DESTROY and not short:
            assert not self._children(name) and not dataset.snapshots
            del self.datasets[name]
        elif short or change.kind is Kind.RENAME:
            snapshots = list(self._snapshots(change, short, dataset.snapshots))
            self._update(name, snapshots=tuple(snapshots))
        else:
            own, settings = dict(dataset.own), dict(dataset.settings)
            table = own if change.name.startswith(naming.PREFIX) else settings
            if change.kind is Kind.SET:
                table[change.name] = change.value
            else:
                assert change.kind is Kind.INHERIT
                table.pop(change.name, None)
            self._update(name, own=own, settings=settings)

    def _snapshots(self, change, short, snapshots):
        names = [snapshot.name for snapshot in snapshots]
        if change.kind is Kind.SNAPSHOT:
            assert short not in names
            yield from snapshots
            yield Snapshot(short, 10**6, False, {}, 0)
            return
        target = change.name if change.kind is Kind.RENAME else short
        assert target in names
        for snapshot in snapshots:
            if snapshot.name != target:
                yield snapshot
            elif change.kind is Kind.RENAME:
                assert change.value not in names
                yield dataclasses.replace(snapshot, name=change.value)
            elif change.kind is not Kind.DESTROY:
                own = dict(snapshot.own)
                if change.kind is Kind.SET:
                    own[change.name] = change.value
                else:
                    del own[change.name]
                yield dataclasses.replace(snapshot, own=own)


snapshots = st.lists(
    st.tuples(
        st.sampled_from(["qubes-clean", "qubes:start", "daily"]),
        st.integers(1, 9),
        st.booleans(),
        st.integers(0, 2 * UNMODIFIED),
    ),
    max_size=5,
).map(
    lambda items: tuple(
        Snapshot(f"{name}-{n}", txg, leaving, {}, since)
        for n, (name, txg, leaving, since) in enumerate(items)
    )
)
#: name -> (save_on_stop, exists on disk, is read-only, snapshots)
volumes = st.fixed_dictionaries(
    {},
    optional={
        name: st.tuples(st.booleans(), st.booleans(), st.booleans(), snapshots)
        for name in ("root", "private", "volatile")
    },
)
qubes = st.dictionaries(
    st.sampled_from(["work", "vault", "disp.1", "tmpl"]),
    st.tuples(st.sampled_from(["AppVM", "TemplateVM", "DispVM"]), volumes),
)
own_settings = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([v for v in item if v is not None])
        for name, item in records.SETTINGS.items()
    },
)


@st.composite
def worlds(draw):
    """Draw a pool, its volumes in qubes.xml and its disk."""
    attributes = draw(st.sampled_from([POOL, OLDER]))
    is_upstream = attributes is POOL
    base = "tank/q" if is_upstream else "tank/q/vm"
    memory = Memory(Dataset("tank/q", "filesystem"))
    if not is_upstream:
        root = Dataset(base, "filesystem", settings=draw(own_settings))
        memory.datasets[base] = root
    configured = []
    for qube, (klass, owned) in draw(qubes).items():
        memory.datasets[f"{base}/{qube}"] = Dataset(
            f"{base}/{qube}", "filesystem"
        )
        for name, (keeps, exists, is_locked, taken) in owned.items():
            vid = f"{base}/{qube}/{name}"
            volume = ConfiguredVolume(
                qube,
                klass,
                {
                    "name": name,
                    "vid": vid,
                    "save_on_stop": str(keeps),
                    "revisions_to_keep": draw(st.sampled_from(["-1", "2"])),
                },
            )
            configured.append(volume)
            origin = Origin.UPSTREAM if is_upstream else Origin.OLDER
            if not volume.is_persistent(origin):
                taken = ()
            if exists:
                locked = {"readonly": "on"} if is_locked else {}
                memory.datasets[vid] = Dataset(
                    vid, "volume", {}, locked, (), taken, 1 << 20
                )
    return attributes, configured, memory


def plans(attributes, configured, memory):
    pool = migrating_pool(attributes, configured)
    disk = memory.disk(pool)
    return pool, plan_migration(pool, configured, disk, "mark").checked()


def undo(attributes, configured, memory):
    pool = migrating_pool(attributes, configured)
    text = memory.datasets[pool.container].own[naming.MIGRATED]
    record = records.disk_record(pool.container, text)
    before = record.origin, record.inside
    pool = migrating_pool(attributes, configured, before)
    names = {volume.qube for volume in configured}
    return plan_undo(pool, record, memory.disk(pool), names).checked()


@PATIENT
@given(worlds())
def test_undo_restores_everything(world):
    attributes, configured, memory = world
    before = dict(memory.datasets)
    _, plan = plans(*world)
    for step in plan.steps:
        memory.carry_out(step)
    assert plans(*world)[1].steps == []
    for step in undo(*world).steps:
        memory.carry_out(step)
    assert comparable(memory.datasets) == comparable(before)


@PATIENT
@given(worlds(), st.integers(0, 20), st.integers(0, 20))
def test_an_interrupted_plan_is_continued(world, first, second):
    attributes, configured, memory = world
    before = dict(memory.datasets)
    for step in plans(*world)[1].steps:
        memory.carry_out(step)
    complete, memory.datasets = memory.datasets, dict(before)
    for point in first, second, None:
        for step in plans(*world)[1].steps[:point]:
            memory.carry_out(step)
    assert comparable(memory.datasets) == comparable(complete)


@PATIENT
@given(worlds(), st.integers(0, 20), st.integers(0, 20))
def test_an_interrupted_undo_is_continued(world, first, second):
    attributes, configured, memory = world
    before = dict(memory.datasets)
    for step in plans(*world)[1].steps[:first]:
        memory.carry_out(step)
    for point in second, None:
        own = memory.datasets["tank/q"].own
        if naming.MIGRATED in own:
            for step in undo(*world).steps[:point]:
                memory.carry_out(step)
    assert comparable(memory.datasets) == comparable(before)


def comparable(datasets):
    """Return *datasets* for a comparison, without unrelated properties."""
    return {
        name: (
            dataset.type,
            dict(dataset.own),
            {
                key: value
                for key, value in dataset.settings.items()
                if key in (*SETTINGS, "readonly")
            },
            sorted((s.name, dict(s.own)) for s in dataset.snapshots),
        )
        for name, dataset in datasets.items()
    }


def test_each_change_has_its_text_and_arguments():
    changes = [
        steps.set_property("a/b", "x:y", "1"),
        steps.inherit("a/b", "x:y"),
        steps.rename_snapshot("a/b", "old", "new"),
        steps.take_snapshot("a/b@s"),
        steps.destroy("a/b"),
    ]
    assert {change.kind for change in changes} == set(Kind)
    assert [str(change) for change in changes] == [
        "set x:y=1 of a/b",
        "inherit x:y of a/b",
        "rename a/b@old to @new",
        "snapshot a/b@s",
        "destroy a/b",
    ]
    assert changes[2].arguments == {
        "kind": "rename",
        "dataset": "a/b",
        "name": "old",
        "value": "new",
    }
    assert changes[4].arguments == {"kind": "destroy", "dataset": "a/b"}
    assert list(changes[2].names()) == ["a/b", "a/b@old", "a/b@new"]


def test_several_reasons_are_raised_together():
    exc = Refused("{a} first", "second", "third", a=1)
    assert exc.reasons == ("1 first", "second", "third")
    assert str(exc) == "1 first"


# --- the command


@pytest.fixture
def situation(monkeypatch, tmp_path):
    """Return the situation of a pool of this driver without a record."""
    pool = MigratingPool(
        *("vault", "zfs_zvol", Origin.OLDER),
        *("tank/q", "tank/q/vm", "tank/q/vm"),
    )
    disk = Memory(Dataset("tank/q", "filesystem")).disk(pool)
    fields = {"is_migrated": True, "record": None}
    monkeypatch.setattr(adopt.saved, "FOLDER", tmp_path)

    async def read(_):
        return adopt._Situation(None, pool, disk, **fields)

    monkeypatch.setattr(adopt, "_read", read)
    return fields


def run(**options):
    arguments = {"pool": "vault", "undo": False, "apply": True, **options}
    return asyncio.run(adopt.run(argparse.Namespace(**arguments)))


def test_a_pool_of_this_driver_is_not_migrated(situation, capsys):
    with pytest.raises(Failed, match="the pool vault already uses this driver"):
        run()
    situation["record"] = '{"was": "older", "old": "vm", "set": {}}'
    assert run() == 0
    assert capsys.readouterr().out == "vault is already migrated\n"


@pytest.mark.parametrize("is_migrated", [True, False])
def test_a_pool_that_was_not_migrated_cannot_be_undone(situation, is_migrated):
    situation["is_migrated"] = is_migrated
    with pytest.raises(Failed, match="the pool vault was not migrated"):
        run(undo=True)


@pytest.mark.parametrize("apply", [True, False])
def test_an_undo_that_left_only_the_dom0_record_is_finished(
    situation, apply, capsys
):
    situation["is_migrated"] = False
    record = records.Dom0Record(
        *("vault", "tank/q", "1", Origin.OLDER, "vm", True), {}
    )
    adopt.saved.save(record)
    assert run(undo=True, apply=apply) == 0
    assert capsys.readouterr().out == "vault is as before the migration\n"
    assert (adopt.saved.load("vault") is None) == apply


def test_a_migration_is_refused_while_qubesd_runs(monkeypatch):
    monkeypatch.setattr(qubes_xml, "qubesd_runs", lambda: True)
    with pytest.raises(Failed, match="qubesd is running; shut down the qubes"):
        run()


def test_every_step_names_its_datasets():
    planned = [
        steps.CreateRoot("a", "is made"),
        steps.SetProperties("a", "is set", {"x": "1"}),
        steps.RenameDataset("a", "becomes b", "b"),
        steps.ChangeTogether("a", "changes", [steps.destroy("a@s")]),
    ]
    names = itertools.chain.from_iterable(step.names() for step in planned)
    assert list(names) == ["a", "a", "a", "b", "a", "a@s"]
    details = [list(step.details()) for step in planned]
    assert details == [[], ["set x=1"], [], ["destroy a@s"]]
