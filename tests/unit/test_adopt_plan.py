# SPDX-License-Identifier: BSD-2-Clause
"""Plans to migrate a pool, and to undo that, for a disk in a given state."""

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
    """Return a list as a channel program returns it."""
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
    fields = {"snapshots": listed(*snapshots), "logical": logical, **more}
    return {**dataset(name, kind="volume"), **fields}


def configured(qube="work", name="private", keep=True, klass="AppVM", vid=None):
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


def disk_reply(*old, moved=(), qubes_root=None):
    """Return what migratable.lua reports of a disk with these datasets."""
    return {
        "container": dataset(C),
        "old": listed(*old),
        "moved": listed(*moved),
        "old_exists": True,
        **({"qubes_root": qubes_root} if qubes_root else {}),
    }


def plan_of(reply, *volumes):
    pool = migrating_pool(POOL, volumes)
    return plan_migration(
        pool, volumes, Disk.parse(Reply(reply)), "mark"
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
    plan = plan_of(disk_reply(dataset(f"{C}/work", WORK)), configured())
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
    """The session that crashed wrote after both snapshots."""
    volume = zvol(
        f"{C}/work/private",
        snapshot("qubes-clean-abc", 30, since=90000),
        snapshot("qubes:before-start:2.0", 40, since=90000),
    )
    plan = plan_of(disk_reply(dataset(f"{C}/work", volume)), configured())
    committed = [
        c.value
        for c in changes_of(plan, f"{C}/vm/work")
        if c.name == naming.COMMITTED + "private"
    ]
    assert committed == ["private@r2"]
    assert any("with uncommitted changes" in step.text for step in plan.steps)


def test_a_first_revision_is_created_unless_none_are_kept():
    reply = disk_reply(dataset(f"{C}/work", zvol(f"{C}/work/private")))
    changes = changes_of(plan_of(reply, configured()), f"{C}/vm/work")
    assert changes[0].dataset == f"{C}/vm/work/private@r1"
    attributes = {**configured().attributes, "revisions_to_keep": "-1"}
    without_revisions = ConfiguredVolume("work", "AppVM", attributes)
    changes = changes_of(plan_of(reply, without_revisions), f"{C}/vm/work")
    assert all("@" not in change.dataset for change in changes)


def test_a_disposable_volume_is_only_marked():
    root = zvol(f"{C}/work/root", logical=6144)
    plan = plan_of(
        disk_reply(dataset(f"{C}/work", root)),
        configured(name="root", keep=False),
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
    reply = disk_reply(moved=[moved], qubes_root=qubes_root)
    reply["container"]["own"] = {naming.MIGRATED: "{}"}
    plan = plan_of(reply, configured())
    assert [step.dataset for step in plan.steps] == [f"{C}/vm/work", C]
    reply["moved"]["1"]["own"] = {naming.MIGRATED: "{}"}
    reply["container"]["own"][naming.CLAIM] = "vault"
    assert plan_of(reply, configured()).steps == []


def test_unconfigured_datasets_stay_in_place():
    plan = plan_of(
        disk_reply(
            dataset(f"{C}/work", WORK, zvol(f"{C}/work/other")),
            dataset(f"{C}/gone", zvol(f"{C}/gone/private")),
            dataset(f"{C}/.exported", dataset(f"{C}/.exported/x")),
            dataset(f"{C}/.tmp"),
        ),
        configured(),
        configured("away"),
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
    "reply, volumes, reason",
    [
        (
            disk_reply(),
            [configured(vid="x/y/z")],
            "does not start with tank/q/work/",
        ),
        (disk_reply(), [configured("a" * 240)], "too long"),
        (
            disk_reply(),
            [configured(name="Private")],
            "is not a valid volume name",
        ),
        (
            disk_reply(),
            [configured(vid=f"{C}/work/a/b")],
            "is not a valid volume name",
        ),
        (
            disk_reply(),
            [configured(vid=f"{C}/work/../x")],
            "is not a valid volume name",
        ),
        (
            disk_reply(qubes_root=dataset(f"{C}/vm")),
            [configured()],
            "rename it",
        ),
        (
            disk_reply(zvol(f"{C}/work")),
            [configured()],
            "is a volume, but the dataset of a qube",
        ),
        (
            disk_reply(dataset(f"{C}/work"), moved=[dataset(f"{C}/vm/work")]),
            [configured()],
            "both exist",
        ),
        (
            disk_reply(dataset(f"{C}/work", dataset(f"{C}/work/private"))),
            [configured()],
            "is not a zvol",
        ),
        (
            disk_reply(dataset(f"{C}/work", WORK, set={"snapdev": "visible"})),
            [configured()],
            "has snapdev=visible",
        ),
        (
            disk_reply(dataset(f"{C}/work", WORK)),
            [configured(keep=False)],
            "qubesd discards its content",
        ),
        (
            disk_reply(dataset(f"{C}/work", WORK, zvol(f"{C}/work/private.1"))),
            [configured()],
            "its name looks like one that this driver gives",
        ),
        (
            disk_reply(
                dataset(f"{C}/work", WORK, zvol(f"{C}/work/x", logical=9))
            ),
            [configured()],
            "which is nearly empty",
        ),
        (
            disk_reply(dataset(f"{C}/work", zvol(W, snapshot("r3", 1)))),
            [configured()],
            "private@r3 has a name that this driver uses itself",
        ),
        (
            disk_reply(
                dataset(f"{C}/work", zvol(W, snapshot("qubes:\xe4", 1)))
            ),
            [configured("w\xf6rk")],
            "is not a valid volume name",
        ),
    ],
)
def test_a_migration_is_refused_with_its_reason(reply, volumes, reason):
    with pytest.raises(Refused) as caught:
        plan_of(reply, *volumes)
    assert any(
        reason in text for text in caught.value.reasons
    ), caught.value.reasons


def test_a_missing_qubes_root_is_refused():
    older = {"name": "mine", "driver": "zfs_zvol"}
    reply = {**disk_reply(), "container": dataset("mine")}
    pool = migrating_pool(older, [configured(vid="mine/vm/work/private")])
    with pytest.raises(Refused, match="the dataset mine/vm does not exist"):
        plan_migration(pool, [], Disk.parse(Reply(reply)), "mark").checked()


def test_an_invalid_name_in_a_step_is_refused():
    reply = disk_reply(dataset(f"{C}/work", zvol(W, snapshot("qubes:a", 1))))
    plan = plan_of(reply, configured())
    plan.steps.append(steps.RenameDataset(f"{C}/work", "is moved", "x y"))
    with pytest.raises(Refused, match="does not support the name 'x y'"):
        plan.checked()


def test_a_foreign_container_or_driver_is_refused():
    reply = disk_reply()
    reply["container"]["own"] = {naming.CLAIM: "other"}
    with pytest.raises(Refused, match="tank/q belongs to the pool other"):
        plan_of(reply, configured())
    with pytest.raises(Refused, match="its driver is lvm_thin"):
        migrating_pool({"name": "x", "driver": "lvm_thin"}, [])


def test_a_missing_or_invalid_container_is_refused():
    reply = disk_reply()
    del reply["container"]
    with pytest.raises(Refused, match="the filesystem tank/q does not exist"):
        plan_of(reply, configured())
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
    pool = migrating_pool(attributes, [configured(vid=vid)])
    assert (pool.old, pool.qubes_root, pool.origin) == (
        old,
        qubes_root,
        Origin.OLDER,
    )


# --- undo


def migrated():
    """Return the reply for a migrated pool with the qube work, and its record."""
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
    reply = disk_reply(moved=[moved], qubes_root=qubes_root)
    record = json.dumps({"was": "zfs", "old": "", "set": {}})
    reply["container"]["own"] = {
        naming.MIGRATED: record,
        naming.CLAIM: "vault",
    }
    return reply, record


def undo_plan(reply, record):
    before = records.disk_record(C, record)
    pool = migrating_pool(POOL, [], (before.origin, before.inside))
    return plan_undo(pool, before, Disk.parse(Reply(reply)), {"work"}).checked()


def test_undo_reverses_the_migration():
    plan = undo_plan(*migrated())
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
    assert gone == sorted(migrated()[0]["moved"]["1"]["own"])


def _commit(qube, private):
    private["snapshots"]["4"] = snapshot("r3", 40)


def _write(qube, private):
    private["snapshots"]["2"]["since"] = 12288


def _prune(qube, private):
    del private["snapshots"]["1"]


def _import(qube, private):
    qube["own"][naming.POINTER + "private"] = "1"


def _start_import(qube, private):
    qube["inner"]["2"] = zvol(f"{C}/vm/work/private.1")


def _start(qube, private):
    qube["own"][naming.POINTER + "root"] = "0 scratch 1"


def _lose(qube, private):
    del qube["inner"]["1"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (_commit, "private of work was committed after the migration"),
        (_write, "private of work was written to after the migration"),
        (_prune, "private of work lost a revision after the migration"),
        (_import, "private of work was replaced after the migration"),
        (_start_import, "private of work was replaced after the migration"),
        (_start, "work was started after the migration (root)"),
        (_lose, "private of work was replaced after the migration"),
    ],
)
def test_undo_is_refused_after_use(change, reason):
    reply, record = copy.deepcopy(migrated())
    qube = reply["moved"]["1"]
    change(qube, qube["inner"]["1"])
    with pytest.raises(Refused) as caught:
        undo_plan(reply, record)
    reasons = (f"{reason}, so the migration cannot be undone",)
    assert caught.value.reasons == reasons


def test_undo_is_refused_after_datasets_were_created():
    reply, record = migrated()
    reply["old"] = listed(dataset(f"{C}/work"))
    with pytest.raises(Refused, match="exists again"):
        undo_plan(reply, record)
    reply, record = migrated()
    reply["moved"]["2"] = dataset(f"{C}/vm/new")
    with pytest.raises(Refused, match="was created after the migration"):
        undo_plan(reply, record)


# --- records on the disk


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
    (reason,) = caught.value.reasons
    assert (
        reason.startswith(f"{C} has {naming.MIGRATED}") and reason.isprintable()
    )
    assert len(reason) < 700


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
    reply, record = migrated()
    qube = reply["moved"]["1"]
    own = {
        "qube": qube["own"],
        "r1": qube["inner"]["1"]["snapshots"]["1"]["own"],
        "mine": qube["inner"]["1"]["snapshots"]["3"]["own"],
    }[where]
    own[name] = value
    with pytest.raises(Refused) as caught:
        undo_plan(reply, record)
    for reason in caught.value.reasons:
        assert "which 'qvm-zfs adopt' does not write" in reason
        assert reason.isprintable()
    assert any(name in reason for reason in caught.value.reasons)


def test_settings_that_undo_cannot_restore_are_not_recorded():
    attributes = {"name": "mine", "driver": "zfs_zvol"}
    qubes_root = dataset(
        "mine/vm", set={"mountpoint": "/etc", "volmode": "none"}
    )
    reply = {**disk_reply(qubes_root=qubes_root), "container": dataset("mine")}
    pool = migrating_pool(attributes, [configured(vid="mine/vm/a/private")])
    plan = plan_migration(pool, [], Disk.parse(Reply(reply)), "mark").checked()
    record = json.loads(plan.steps[0].changes[0].value)
    assert "mountpoint" not in record["set"]
    assert record["set"]["volmode"] == "none"
    assert record["set"]["snapdev"] is None
    assert records.disk_record("mine", json.dumps(record))
    assert any("mountpoint=/etc of mine/vm" in text for text in plan.left)


# --- records in dom0


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
    """It has no settings of the qubes root, so those on the disk count."""
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
