# SPDX-License-Identifier: BSD-2-Clause
"""What adopting and undoing it would do, from what is on disk."""

import copy
import dataclasses
import json

import pytest

from qubes_storage_zfs.migrate import records, saved, steps
from qubes_storage_zfs.migrate.disk import Disk
from qubes_storage_zfs.migrate.errors import Refused
from qubes_storage_zfs.migrate.plan import plan_migration
from qubes_storage_zfs.migrate.pools import (
    ConfiguredVolume,
    MigratingPool,
    Origin,
    migrating_pool,
)
from qubes_storage_zfs.migrate.undo import plan_undo
from qubes_storage_zfs.store import naming, policy
from qubes_storage_zfs.zfs.reply import Reply

POOL = {"name": "vault", "driver": "zfs", "container": "tank/q"}
C = "tank/q"


def listed(*items):
    return {str(number): item for number, item in enumerate(items, 1)}


def snapshot(name, createtxg, since=0, **more):
    return {
        "name": name,
        "createtxg": createtxg,
        "deferred": False,
        "own": {},
        "since": since,
        **more,
    }


def dataset(name, *inner, kind="filesystem", **more):
    return {
        "name": name,
        "type": kind,
        "own": {},
        "set": {},
        "inner": listed(*inner),
        **more,
    }


def zvol(name, *snapshots, logical=1 << 20, **more):
    given = {"snapshots": listed(*snapshots), "logical": logical, **more}
    return {**dataset(name, kind="volume"), **given}


def known(qube="work", name="private", keep=True, klass="AppVM", vid=None):
    return ConfiguredVolume(
        qube,
        klass,
        {
            "name": name,
            "vid": vid or f"{C}/{qube}/{name}",
            "save_on_stop": str(keep),
            "revisions_to_keep": "2",
        },
    )


def found(*old, moved=(), qubes_root=None):
    return {
        "container": dataset(C),
        "old": listed(*old),
        "moved": listed(*moved),
        "old_exists": True,
        **({"qubes_root": qubes_root} if qubes_root else {}),
    }


def plan_of(there, *volumes):
    pool = migrating_pool(POOL, volumes)
    return plan_migration(
        pool, volumes, Disk.parse(Reply(there)), "mark"
    ).checked()


def changes_of(plan, dataset):
    (step,) = (
        s
        for s in plan.steps
        if isinstance(s, steps.ChangeTogether) and s.dataset == dataset
    )
    return step.changes


def outline(plan):
    return [(type(step).__name__, step.dataset) for step in plan.steps]


W = f"{C}/work/private"
WORK = zvol(
    W,
    snapshot("qubes-clean-abc", 30),
    snapshot("mine", 25),
    snapshot("qubes:before-start:2.0", 20),
    snapshot("qubes:after-create:1.0", 10),
    snapshot("qubes-clean-old", 15, deferred=True),
)


def test_revisions_are_numbered_in_order_of_creation():
    plan = plan_of(found(dataset(f"{C}/work", WORK)), known())
    assert outline(plan) == [
        ("ChangeTogether", C),
        ("CreateRoot", f"{C}/vm"),
        ("RenameDataset", f"{C}/work"),
        ("ChangeTogether", f"{C}/vm/work"),
        ("ChangeTogether", C),
    ]
    assert plan.steps[2].new == f"{C}/vm/work"
    changes = changes_of(plan, f"{C}/vm/work")
    renamed = [(c.name, c.value) for c in changes if c.kind == "rename"]
    assert renamed == [
        ("qubes:after-create:1.0", "r1"),
        ("qubes:before-start:2.0", "r2"),
        ("qubes-clean-abc", "r3"),
    ]
    properties = {
        (c.dataset, c.name): c.value for c in changes if c.kind == "set"
    }
    qube, target = f"{C}/vm/work", f"{C}/vm/work/private"
    assert properties == {
        (f"{target}@r1", naming.MIGRATED): "qubes:after-create:1.0",
        (f"{target}@r2", naming.MIGRATED): "qubes:before-start:2.0",
        (f"{target}@r3", naming.MIGRATED): "qubes-clean-abc",
        (qube, naming.COMMITTED + "private"): "private@r3",
        (qube, naming.POINTER + "private"): "0",
        (qube, naming.MIGRATED_VOLUME + "private"): "3 0 rw",
        (qube, naming.MIGRATED): "{}",
        (target, naming.HOLDER): "mark",
    }


def test_after_a_crash_the_newest_snapshot_is_the_committed_state():
    """The newest committed state is before the revision made of it."""
    there = zvol(
        f"{C}/work/private",
        snapshot("qubes-clean-abc", 30, since=90000),
        snapshot("qubes:before-start:2.0", 40, since=90000),
    )
    plan = plan_of(found(dataset(f"{C}/work", there)), known())
    committed = [
        c.value
        for c in changes_of(plan, f"{C}/vm/work")
        if c.name == naming.COMMITTED + "private"
    ]
    assert committed == ["private@r2"]
    assert any("with uncommitted changes" in step.text for step in plan.steps)


def test_a_first_revision_is_created_unless_none_are_kept():
    there = found(dataset(f"{C}/work", zvol(f"{C}/work/private")))
    changes = changes_of(plan_of(there, known()), f"{C}/vm/work")
    assert changes[0].dataset == f"{C}/vm/work/private@r1"
    attributes = {**known().attributes, "revisions_to_keep": "-1"}
    none = ConfiguredVolume("work", "AppVM", attributes)
    changes = changes_of(plan_of(there, none), f"{C}/vm/work")
    assert all("@" not in change.dataset for change in changes)


def test_a_disposable_volume_is_only_marked():
    root = zvol(f"{C}/work/root", logical=6144)
    plan = plan_of(
        found(dataset(f"{C}/work", root)), known(name="root", keep=False)
    )
    changes = changes_of(plan, f"{C}/vm/work")
    assert [(c.dataset, c.name) for c in changes] == [
        (f"{C}/vm/work/root", naming.HOLDER),
        (f"{C}/vm/work", naming.MIGRATED_VOLUME + "root"),
        (f"{C}/vm/work", naming.MIGRATED),
    ]


def test_completed_steps_are_not_planned_again():
    qubes_root = dataset(f"{C}/vm", set=dict(policy.ROOT_SETTINGS))
    moved = dataset(f"{C}/vm/work", WORK)
    there = found(moved=[moved], qubes_root=qubes_root)
    there["container"]["own"] = {naming.MIGRATED: "{}"}
    plan = plan_of(there, known())
    assert [step.dataset for step in plan.steps] == [f"{C}/vm/work", C]
    there["moved"]["1"]["own"] = {naming.MIGRATED: "{}"}
    there["container"]["own"][naming.CLAIM] = "vault"
    assert plan_of(there, known()).steps == []


def test_unconfigured_datasets_stay_in_place():
    plan = plan_of(
        found(
            dataset(f"{C}/work", WORK, zvol(f"{C}/work/other")),
            dataset(f"{C}/gone", zvol(f"{C}/gone/private")),
            dataset(f"{C}/.exported", dataset(f"{C}/.exported/x")),
            dataset(f"{C}/.tmp"),
        ),
        known(),
        known("away"),
    )
    assert plan.left == [
        "the volume private of away is not on disk: tank/q/away/private",
        "qubesd does not know tank/q/work/other, which is left as it is",
        "qubesd has no volume in tank/q/gone",
        "tank/q/.exported has temporary datasets of upstream's driver",
    ]
    text = str(plan.steps)
    assert not any(name in text for name in ("other", "gone", ".exported"))


@pytest.mark.parametrize(
    "there, volumes, why",
    [
        (found(), [known(vid="x/y/z")], "does not start with tank/q/work/"),
        (found(), [known("a" * 240)], "too long"),
        (found(), [known(name="Private")], "is not a valid volume name"),
        (found(), [known(vid=f"{C}/work/a/b")], "is not a valid volume name"),
        (found(), [known(vid=f"{C}/work/../x")], "is not a valid volume name"),
        (found(qubes_root=dataset(f"{C}/vm")), [known()], "rename it"),
        (
            found(zvol(f"{C}/work")),
            [known()],
            "is a volume, but the dataset of a qube",
        ),
        (
            found(dataset(f"{C}/work"), moved=[dataset(f"{C}/vm/work")]),
            [known()],
            "both exist",
        ),
        (
            found(dataset(f"{C}/work", dataset(f"{C}/work/private"))),
            [known()],
            "is not a zvol",
        ),
        (
            found(dataset(f"{C}/work", WORK, set={"snapdev": "visible"})),
            [known()],
            "has snapdev=visible",
        ),
        (
            found(dataset(f"{C}/work", WORK)),
            [known(keep=False)],
            "qubesd discards its content",
        ),
        (
            found(dataset(f"{C}/work", WORK, zvol(f"{C}/work/private.1"))),
            [known()],
            "its name looks like one that this driver gives",
        ),
        (
            found(dataset(f"{C}/work", WORK, zvol(f"{C}/work/x", logical=9))),
            [known()],
            "which is nearly empty",
        ),
        (
            found(dataset(f"{C}/work", zvol(W, snapshot("r3", 1)))),
            [known()],
            "private@r3 has a name that this driver uses itself",
        ),
        (
            found(dataset(f"{C}/work", zvol(W, snapshot("qubes:\xe4", 1)))),
            [known("w\xf6rk")],
            "is not a valid volume name",
        ),
    ],
)
def test_a_migration_is_refused_with_its_reason(there, volumes, why):
    with pytest.raises(Refused) as caught:
        plan_of(there, *volumes)
    assert any(
        why in text for text in caught.value.reasons
    ), caught.value.reasons


def test_a_missing_qubes_root_is_refused():
    older = {"name": "mine", "driver": "zfs_zvol"}
    there = {**found(), "container": dataset("mine")}
    pool = migrating_pool(older, [known(vid="mine/vm/work/private")])
    with pytest.raises(Refused, match="the dataset mine/vm does not exist"):
        plan_migration(pool, [], Disk.parse(Reply(there)), "mark").checked()


def test_an_invalid_name_in_a_step_is_refused():
    there = found(dataset(f"{C}/work", zvol(W, snapshot("qubes:a", 1))))
    plan = plan_of(there, known())
    plan.steps.append(steps.RenameDataset(f"{C}/work", "is moved", "x y"))
    with pytest.raises(Refused, match="does not support the name 'x y'"):
        plan.checked()


def test_a_foreign_container_or_driver_is_refused():
    there = found()
    there["container"]["own"] = {naming.CLAIM: "other"}
    with pytest.raises(Refused, match="tank/q belongs to the pool other"):
        plan_of(there, known())
    with pytest.raises(Refused, match="its driver is lvm_thin"):
        migrating_pool({"name": "x", "driver": "lvm_thin"}, [])


def test_a_missing_or_invalid_container_is_refused():
    there = found()
    del there["container"]
    with pytest.raises(Refused, match="the filesystem tank/q does not exist"):
        plan_of(there, known())
    with pytest.raises(Refused, match="does not support"):
        migrating_pool({**POOL, "container": "tank/a b"}, [])


@pytest.mark.parametrize(
    "driver, vid, old, qubes_root",
    [
        ("zfs_zvol", "mine/vm/a/b", "mine/vm", "mine/vm"),
        ("zfs_encrypted", "t/encryption/mine/a/b", "", ""),
        ("zfs_encrypted", "t/encryption/mine/vm/a/b", "/vm", ""),
    ],
)
def test_the_older_layout_is_located_from_the_vids(
    driver, vid, old, qubes_root
):
    attributes = {"name": "mine", "driver": driver, "zpool_name": "t"}
    if driver == "zfs_encrypted":
        base = "t/encryption/mine"
        old, qubes_root = base + old, base + qubes_root
    pool = migrating_pool(attributes, [known(vid=vid)])
    assert (pool.old, pool.qubes_root, pool.origin) == (
        old,
        qubes_root,
        Origin.OLDER,
    )


# --- undoing


def adopted():
    """The work qube, adopted."""
    qubes_root = dataset(f"{C}/vm", set=dict(policy.ROOT_SETTINGS))
    moved = dataset(
        f"{C}/vm/work",
        zvol(
            f"{C}/vm/work/private",
            snapshot("r1", 10, own={naming.MIGRATED: "qubes:after-create:1"}),
            snapshot("r2", 20, own={naming.MIGRATED: "qubes-clean-abc"}),
            snapshot("mine", 30),
        ),
        own={
            naming.MIGRATED: "{}",
            naming.MIGRATED_VOLUME + "private": "2 0 ro",
            naming.POINTER + "private": "0",
            naming.COMMITTED + "private": "private@r2",
        },
    )
    there = found(moved=[moved], qubes_root=qubes_root)
    record = json.dumps({"was": "zfs", "old": "", "set": {}})
    there["container"]["own"] = {
        naming.MIGRATED: record,
        naming.CLAIM: "vault",
    }
    return there, record


def undone(there, record):
    before = records.disk_record(C, record)
    pool = migrating_pool(POOL, [], (before.origin, before.inside))
    return plan_undo(pool, before, Disk.parse(Reply(there)), {"work"}).checked()


def test_undo_reverses_the_migration():
    plan = undone(*adopted())
    assert outline(plan) == [
        ("ChangeTogether", C),
        ("SetProperties", f"{C}/vm/work/private"),
        ("ChangeTogether", f"{C}/vm/work"),
        ("RenameDataset", f"{C}/vm/work"),
        ("ChangeTogether", f"{C}/vm"),
        ("ChangeTogether", C),
    ]
    changes = plan.steps[2].changes
    assert [(c.name, c.value) for c in changes if c.kind == "rename"] == [
        ("r1", "qubes:after-create:1"),
        ("r2", "qubes-clean-abc"),
    ]
    shown = [text for step in plan.steps for text in step.details()]
    assert "set readonly=on" in shown
    assert f"rename {C}/vm/work/private@r2 to @qubes-clean-abc" in shown
    assert f"inherit {naming.CLAIM} of {C}" in shown
    gone = [c.name for c in changes if c.dataset == f"{C}/vm/work"]
    assert gone == sorted(adopted()[0]["moved"]["1"]["own"])


def _commit(qube, private):
    private["snapshots"]["4"] = snapshot("r3", 40)


def _write(qube, private):
    private["snapshots"]["2"]["since"] = 12288


def _prune(qube, private):
    del private["snapshots"]["1"]


def _import(qube, private):
    qube["own"][naming.POINTER + "private"] = "1"


def _begin_import(qube, private):
    qube["inner"]["2"] = zvol(f"{C}/vm/work/private.1")


def _start(qube, private):
    qube["own"][naming.POINTER + "root"] = "0 scratch 1"


def _lose(qube, private):
    del qube["inner"]["1"]


@pytest.mark.parametrize(
    "what, why",
    [
        (_commit, "private of work was committed after the migration"),
        (_write, "private of work was written to after the migration"),
        (_prune, "private of work lost a revision after the migration"),
        (_import, "private of work was replaced after the migration"),
        (_begin_import, "private of work was replaced after the migration"),
        (_start, "work was started after the migration (root)"),
        (_lose, "private of work was replaced after the migration"),
    ],
)
def test_undo_is_refused_after_use(what, why):
    there, record = copy.deepcopy(adopted())
    qube = there["moved"]["1"]
    what(qube, qube["inner"]["1"])
    with pytest.raises(Refused) as caught:
        undone(there, record)
    reasons = (f"{why}, so the migration cannot be undone",)
    assert caught.value.reasons == reasons


def test_undo_is_refused_after_datasets_were_created():
    there, record = adopted()
    there["old"] = listed(dataset(f"{C}/work"))
    with pytest.raises(Refused, match="exists again"):
        undone(there, record)
    there, record = adopted()
    there["moved"]["2"] = dataset(f"{C}/vm/new")
    with pytest.raises(Refused, match="was created after the migration"):
        undone(there, record)


# --- what a disk may record


def _record(**changed):
    record = {"was": "zfs", "old": "", "set": {}, **changed}
    return json.dumps({k: v for k, v in record.items() if v is not ...})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "[" * 8000,
        _record(old="../elsewhere"),
        _record(old="vm"),
        _record(old=...),
        _record(was="lvm"),
        _record(vid="other/private"),
        _record(set=["mountpoint"]),
        _record(set={"canmount": "on"}),
        _record(set={"mountpoint": "/etc"}),
        _record(set={"mountpoint": ["none"]}),
        _record(set={"volmode": "full"}),
        _record(set={"snapdev": "visible"}),
        _record(set={naming.UDEV_FLAG: "false"}),
        _record(set={"sharenfs": None}),
        _record(set={"x\ty": "none"}),
    ],
)
def test_an_invalid_container_record_is_refused(text):
    with pytest.raises(Refused) as caught:
        records.disk_record(C, text)
    (why,) = caught.value.reasons
    assert why.startswith(f"{C} has {naming.MIGRATED}") and why.isprintable()
    assert len(why) < 700


def test_container_records_that_migration_writes_are_read():
    for before in {}, {"mountpoint": None, "volmode": "default"}:
        record = records.disk_record(C, _record(set=before))
        assert (record.origin, record.inside, record.settings) == (
            "zfs",
            "",
            before,
        )
    assert records.disk_record(C, _record(was="older", old="vm")).inside == "vm"


@pytest.mark.parametrize(
    "where, name, value",
    [
        ("qube", naming.PREFIX + "surprise", "1"),
        ("qube", naming.POINTER + "private", "0\x1b[2J"),
        ("qube", naming.POINTER + "Private", "0"),
        ("qube", naming.COMMITTED + "private", "../x@r1"),
        ("qube", naming.MIGRATED_VOLUME + "private", "2 0 rw ro"),
        ("qube", naming.MIGRATED_VOLUME + "private", "2 " + "9" * 30 + " rw"),
        ("qube", naming.MIGRATED, '{"private": {"pool": "other"}}'),
        ("qube", naming.MIGRATED, '{"private": {"vid": "other/private"}}'),
        ("qube", naming.MIGRATED, '{"private": {"save_on_stop": "yes"}}'),
        ("qube", naming.MIGRATED, '{"private": {"save_on_stop": true}}'),
        ("qube", naming.MIGRATED, "none"),
        ("r1", naming.MIGRATED, "daily-2026"),
        ("r1", naming.MIGRATED, "qubes-clean-abc\n"),
        ("r1", naming.MIGRATED, "qubes-clean-abc"),
        ("r1", naming.MIGRATED, "mine"),
        ("mine", naming.MIGRATED, "-"),
        ("mine", naming.MIGRATED, "qubes-clean-more"),
    ],
)
def test_records_that_migration_does_not_write_are_refused(where, name, value):
    there, record = adopted()
    qube = there["moved"]["1"]
    own = {
        "qube": qube["own"],
        "r1": qube["inner"]["1"]["snapshots"]["1"]["own"],
        "mine": qube["inner"]["1"]["snapshots"]["3"]["own"],
    }[where]
    own[name] = value
    with pytest.raises(Refused) as caught:
        undone(there, record)
    for why in caught.value.reasons:
        assert "which 'qvm-zfs adopt' does not write" in why
        assert why.isprintable()
    assert any(name in why for why in caught.value.reasons)


def test_settings_that_undo_cannot_restore_are_not_recorded():
    attributes = {"name": "mine", "driver": "zfs_zvol"}
    qubes_root = dataset(
        "mine/vm", set={"mountpoint": "/etc", "volmode": "none"}
    )
    there = {**found(qubes_root=qubes_root), "container": dataset("mine")}
    pool = migrating_pool(attributes, [known(vid="mine/vm/a/private")])
    plan = plan_migration(pool, [], Disk.parse(Reply(there)), "mark").checked()
    record = json.loads(plan.steps[0].changes[0].value)
    assert "mountpoint" not in record["set"]
    assert record["set"]["volmode"] == "none"
    assert record["set"]["snapdev"] is None
    assert records.disk_record("mine", json.dumps(record))
    assert any("mountpoint=/etc of mine/vm" in text for text in plan.left)


# --- what dom0 records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "FOLDER", tmp_path / "saved")
    return tmp_path / "saved"


SAVED = records.Dom0Record(
    pool="vault",
    container=C,
    zpool_guid="123",
    origin=Origin.OLDER,
    inside="vm",
    guid_is_new=True,
    dropped={"work": {"private": {"save_on_stop": "False"}}},
    settings={"mountpoint": None, "volmode": "default"},
)


POOL_OF_OLDER = MigratingPool(
    "vault", "zfs_zvol", Origin.OLDER, C, f"{C}/vm", f"{C}/vm"
)


def test_a_dom0_record_is_saved_loaded_and_deleted(folder):
    assert saved.load("vault") is None
    saved.save(SAVED)
    saved.save(SAVED)
    assert saved.load("vault") == SAVED
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    saved.delete("vault")
    saved.delete("vault")
    assert saved.load("vault") is None


def test_a_dom0_record_of_an_earlier_version_is_loaded(folder):
    """It has no settings of the qubes root; those on the disk count."""
    saved.save(SAVED)
    (file,) = folder.iterdir()
    value = json.loads(file.read_text())
    del value["settings"]
    file.write_text(json.dumps(value))
    record = saved.load("vault")
    assert record == dataclasses.replace(SAVED, settings=None)
    for settings in {}, {"mountpoint": "none"}:
        on_disk = records.DiskRecord(Origin.OLDER, "vm", settings)
        records.check_same(POOL_OF_OLDER, on_disk, "123", record)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"pool": "other"},
        {"container": None},
        {"zpool_guid": 123},
        {"was": "lvm"},
        {"old": "../x"},
        {"noted": "yes"},
        {"more": 1},
        {"dropped": {"work": {"private": {"pool": "other"}}}},
        {"dropped": {"work": {"private": {"save_on_stop": "maybe"}}}},
        {"dropped": []},
        {"settings": []},
        {"settings": {"mountpoint": "/etc"}},
        {"settings": {"sharenfs": None}},
    ],
)
def test_an_invalid_dom0_record_is_refused(folder, change):
    saved.save(SAVED)
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(Refused, match="is not what 'qvm-zfs adopt' wrote"):
        saved.load("vault")


def test_a_record_that_another_user_can_write_is_refused(folder):
    saved.save(SAVED)
    (file,) = folder.iterdir()
    file.chmod(0o622)
    with pytest.raises(Refused, match="is not what"):
        saved.load("vault")
    folder.chmod(0o777)
    with pytest.raises(Refused, match="another user than root can write"):
        saved.save(SAVED)
    folder.chmod(0o700)
    target = folder.parent / "target"
    file.rename(target)
    file.symlink_to(target)
    with pytest.raises(Refused, match="cannot be read"):
        saved.load("vault")
    saved.save(SAVED)
    assert not file.is_symlink() and target.stat().st_mode & 0o777 == 0o622


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\nb", ".x", "x" * 201])
def test_a_pool_name_that_is_no_file_name_is_refused(folder, name):
    for use in saved.load, saved.delete:
        with pytest.raises(Refused, match="cannot name a record file"):
            use(name)


@pytest.mark.parametrize(
    "change",
    [
        {"container": "tank/x"},
        {"zpool_guid": "9"},
        {"origin": Origin.UPSTREAM, "inside": ""},
        {"settings": {"mountpoint": None, "volmode": "dev"}},
        {"settings": {}},
    ],
)
def test_records_of_another_migration_are_refused(change):
    on_disk = records.DiskRecord(Origin.OLDER, "vm", SAVED.settings)
    records.check_same(POOL_OF_OLDER, on_disk, "123", SAVED)
    other = dataclasses.replace(SAVED, **change)
    with pytest.raises(Refused, match="is not what dom0 recorded"):
        records.check_same(POOL_OF_OLDER, on_disk, "123", other)
