# SPDX-License-Identifier: BSD-2-Clause
"""Unusual orders and settings, and many operations at once."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.zfs import commands, devices, lzc

from ..support.zpools import MIB, export_zpool, open_device, read, sh, write


def test_stop_and_remove_ignore_missing_volumes(lab):
    root = lab.volume("t", "root", save_on_stop=True)
    for volume in (
        lab.volume("never", save_on_stop=True),
        lab.volatile("never"),
        lab.clone_of(root, "never"),
    ):
        lab.run(volume.stop())
        lab.run(volume.remove())
    assert lab.datasets() == ["vm"]


def test_start_resets_disposable_volumes_after_a_failed_start(lab):
    root = lab.private("tmpl", b"v1", name="root")
    app, volatile = lab.clone_of(root), lab.volatile("app")
    for _ in range(2):
        lab.start(app, volatile)
        assert read(app.path) == b"v1" and read(volatile.path) == b""
        write(app.path, b"y")
        write(volatile.path, b"x")
    lab.stop(app, volatile)
    lab.start(app, volatile)
    assert read(app.path) == b"v1" and read(volatile.path) == b""


def test_session_continues_after_a_restart_of_qubesd(lab):
    volume = lab.private(content=b"one")
    lab.start(volume)
    write(volume.path, b"two")
    lab.restart()
    volume = lab.again(volume)
    lab.start(volume)
    assert read(volume.path) == b"two"
    lab.stop(volume)
    assert lab.content(volume) == b"two"


def test_stop_twice_commits_once(lab):
    volume = lab.private(content=b"one")
    revisions = volume.revisions
    lab.run(volume.stop())
    lab.run(volume.stop())
    assert volume.revisions == revisions
    # this stop has to ask ZFS whether the qube wrote
    lab.start(volume)
    lab.stop(volume)
    assert volume.revisions == revisions


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_revisions_to_keep_limits_revisions(lab, keep):
    volume = lab.private(revisions_to_keep=keep)
    for number in range(5):
        lab.session(volume, b"%d" % number)
    assert len(volume.revisions) == keep
    assert lab.content(volume) == b"4"
    volume.revisions_to_keep = 0
    lab.start(volume)
    lab.stop(volume)
    assert volume.revisions == {}
    assert lab.content(volume) == b"4"


def test_import_without_revisions_replaces_content(lab):
    volume = lab.private(content=b"old", revisions_to_keep=0)
    lab.replace(volume, b"new")
    assert volume.revisions == {}
    assert lab.content(volume) == b"new"
    assert len(lab.datasets("volume")) == 1


def test_import_end_waits_until_the_device_is_closed(lab):
    """udev's zvol_id opens the node once the writer has closed it."""
    volume = lab.private(content=b"old")
    path = lab.run(volume.import_data(MIB))
    write(path, b"new")
    opened = devices.open_node(path, os.O_RDONLY)
    with subprocess.Popen(["sleep", "1"], stdin=opened) as glance:
        os.close(opened)
        lab.run(volume.import_data_end(True))
        assert glance.poll() is not None
    assert lab.content(volume) == b"new"


@pytest.mark.parametrize("before, keep", [(-1, -1), (-1, 2), (2, 2)])
def test_stop_destroys_the_temporary_snapshot_of_a_crashed_export(
    lab, before, keep
):
    """An export of a volume without revisions first takes a snapshot @x1."""
    volume = lab.private(content=b"one", revisions_to_keep=before)
    sh("zfs", "snapshot", f"{volume.dataset}@x1")
    volume.revisions_to_keep = keep
    lab.run(volume.stop())
    assert not any("@x" in name for name in lab.datasets("snapshot"))
    assert lab.content(volume) == b"one"


def test_volume_without_revisions_has_no_snapshots(lab):
    volume = lab.private(content=b"one", revisions_to_keep=1)
    volume.revisions_to_keep = -1
    lab.session(volume, b"two")
    assert lab.datasets("snapshot") == []
    assert volume.revisions == {}
    assert not volume.is_dirty()
    assert lab.content(volume) == b"two"
    assert lab.datasets("snapshot") == []
    lab.start(volume)
    assert volume.is_dirty()
    other = lab.private("other")
    for verb in volume.export, lambda: other.import_volume(volume):
        with pytest.raises(StoragePoolException, match="no revisions"):
            lab.run(verb())
    lab.stop(volume)
    lab.run(other.import_volume(volume))
    assert lab.content(other) == b"two"
    lab.replace(volume, b"three")
    assert lab.content(volume) == b"three"
    volume.revisions_to_keep = 2
    lab.session(volume, b"four")
    assert lab.content(volume) == b"four"
    lab.run(other.remove())
    lab.run(volume.remove())
    assert lab.datasets() == ["vm"]


def test_app_qube_starts_from_a_template_without_revisions(lab):
    root = lab.private("tmpl", name="root", revisions_to_keep=-1)
    lab.session(root, b"v1")
    app = lab.clone_of(root)
    lab.start(app)
    assert read(app.path) == b"v1"
    lab.stop(app)
    assert lab.datasets("snapshot") == []


def test_concurrent_exports_are_independent(lab):
    volume = lab.private(content=b"one")
    first = lab.run(volume.export())
    lab.session(volume, b"two")
    second = lab.run(volume.export())
    assert first != second
    assert (read(first), read(second)) == (b"one", b"two")
    lab.run(volume.export_end(first))
    lab.run(volume.export_end(first))
    assert read(second) == b"two"
    lab.run(volume.export_end(second))
    assert lab.datasets("volume") == ["vm/work/private"]


def test_export_end_never_destroys_the_volume(lab):
    volume = lab.private(content=b"data")
    other = lab.private("other", content=b"data")
    for path in volume.path, other.path, "/dev/null", "/dev/zvol/tank":
        lab.run(volume.export_end(path))
    assert lab.content(volume) == lab.content(other) == b"data"


def test_export_survives_removal_of_its_volume(lab):
    volume = lab.private(content=b"data")
    path = lab.run(volume.export())
    lab.run(volume.remove())
    assert read(path) == b"data"
    lab.run(volume.export_end(path))
    assert lab.datasets() == ["vm"]


def test_disposable_volumes_refuse_export_and_import(lab):
    for volume in lab.volatile(), lab.clone_of(lab.private("t", name="root")):
        for verb in volume.export, lambda v=volume: v.import_data(MIB):
            with pytest.raises(NotImplementedError):
                lab.run(verb())


def test_forensics_keeps_content_until_the_next_start(lab):
    root = lab.private("tmpl", b"v1", name="root")
    app = lab.clone_of(root, snap_on_start_forensics=True)
    lab.session(app, b"evidence")
    assert read(app.path) == b"evidence"
    assert app.config["snap_on_start_forensics"] is True
    lab.start(app)
    assert read(app.path) == b"v1"
    lab.run(app.remove())
    assert not any("vm/app" in name for name in lab.datasets())


def test_create_refuses_the_name_of_an_existing_volume(lab):
    lab.private(content=b"data")
    lab.restart()
    again = lab.volume(save_on_stop=True)
    with pytest.raises(StoragePoolException, match="left by a qube"):
        lab.run(again.create())
    # qubesd calls stop() and remove() after a failed creation
    lab.run(again.stop())
    lab.run(again.remove())
    assert "vm/work/private@r2" in lab.datasets()
    lab.restart()
    assert lab.content(lab.volume(save_on_stop=True)) == b"data"


def test_removal_of_a_disposable_volume_leaves_a_kept_one_of_its_name(lab):
    kept = lab.private("work", b"precious", name="root")
    lab.restart()
    scratch = lab.clone_of(lab.private("tmpl", name="root"), "work")
    lab.run(scratch.create())
    lab.run(scratch.stop())
    lab.run(scratch.remove())
    assert lab.content(lab.again(kept)) == b"precious"


def test_import_of_the_zpool_makes_no_volume_dirty(away):
    """Importing a zpool writes metadata of each zvol, and `written` counts it.

    If the driver took this for changes, each reboot would add a revision.
    """
    volume = away.private(content=b"one")
    away.session(volume, b"two")
    before = volume.revisions
    for _ in range(3):
        export_zpool("away")
        sh("zpool", "import", "-d", "/tmp", "away")
        away.restart()
        volume = away.again(volume)
        assert not volume.is_dirty()
        away.run(volume.stop())
        assert volume.revisions == before
    away.run(volume.revert())
    assert away.content(volume) == b"one"


def test_unmarked_clone_is_collected_after_an_import(away):
    """A crash can leave a clone unmarked, and an import writes to each clone.

    ZFS sets the mark one transaction group after the clone. The driver must
    keep a clone to which an administrator wrote data.
    """
    volume = away.private(content=b"saved")
    dataset, origin = volume.dataset, f"{volume.dataset}@r2"
    for number in (7, 8):
        sh("zfs", "clone", origin, f"{dataset}.{number}")
    sh("udevadm", "settle")
    write(f"/dev/zvol/{dataset}.8", b"x")
    export_zpool("away")
    sh("zpool", "import", "-d", "/tmp", "away")
    assert int(sh("zfs", "get", "-Hpo", "value", "written", f"{dataset}.7"))
    away.restart()
    assert away.sweep_until(
        lambda: "vm/work/private.7" not in away.datasets("volume")
    )
    assert "vm/work/private.8" in away.datasets("volume")


def test_next_stop_commits_a_session_cut_by_power_loss(away):
    volume = away.private(content=b"one")
    away.start(volume)
    write(volume.path, b"two")
    Path(volume.state_file).unlink()
    export_zpool("away")
    sh("zpool", "import", "-d", "/tmp", "away")
    away.restart()
    volume = away.again(volume)
    assert volume.is_dirty()
    assert away.content(volume) == b"one"
    away.run(volume.stop())
    assert not volume.is_dirty()
    assert away.content(volume) == b"two"


@pytest.mark.parametrize(
    "vid",
    [
        "",
        "private",
        "a/b/c",
        "a/",
        "/b",
        "a/../b",
        "a b/private",
        "a/priv%ate",
        "a@b/private",
        "a/b@r1",
        "a/Private",
        "a/x.1",
    ],
)
def test_malformed_vid_is_refused(lab, vid):
    volume = lab.pool.init_volume(
        lab.vm("x"),
        {
            "name": "private",
            "vid": vid,
            "save_on_stop": True,
            "rw": True,
            "size": MIB,
        },
    )
    before = lab.datasets()
    for verb in volume.create, volume.start, volume.export, volume.remove:
        with pytest.raises(StoragePoolException):
            lab.run(verb())
    lab.run(volume.stop())
    assert volume.revisions == {} and volume.usage == 0
    assert volume.path is None
    assert lab.datasets() == before


def test_longest_name_works_and_a_longer_one_is_refused(lab):
    room = naming.NAME_MAX - naming.SUFFIX_ROOM
    longest = "q" * (room - len(f"{lab.container}/vm//private"))
    volume = lab.private(longest, b"one")
    lab.session(volume, b"two")
    lab.run(volume.revert())
    assert lab.content(volume) == b"one"
    with pytest.raises(StoragePoolException, match="too long"):
        lab.private(longest + "q")


@pytest.mark.parametrize(
    "revision", ["r9", "r0", "", "r1 ", "current", "r1@x", "-r", "r" + "9" * 30]
)
def test_revert_refuses_unknown_revisions(lab, revision):
    volume = lab.private(content=b"data")
    before = lab.datasets()
    with pytest.raises(StoragePoolException):
        lab.run(volume.revert(revision))
    assert lab.datasets() == before


def test_revert_refuses_the_committed_state(lab):
    """qubesd lists it during a stop, so a client may name it."""
    volume = lab.private(content=b"data")
    before = lab.datasets()
    committed = volume.view.committed_ids()[-1]
    assert committed in volume.revisions
    assert committed not in list(volume.revisions)
    assert "r9" not in volume.revisions
    with pytest.raises(StoragePoolException, match="is the committed state"):
        lab.run(volume.revert(committed))
    assert lab.datasets() == before


@pytest.mark.parametrize("size", [-1, "x", None, 1 << 61, "10G"])
def test_malformed_size_is_refused(lab, size):
    volume = lab.private(content=b"data")
    before = lab.datasets()
    for verb in volume.resize, volume.import_data:
        with pytest.raises(
            StoragePoolException, match="not a valid volume size"
        ):
            lab.run(verb(size))
    assert lab.datasets() == before and volume.size == 4 * MIB


def test_operations_refuse_a_running_volume(lab):
    volume = lab.private(content=b"data")
    other = lab.private("other")
    lab.start(volume)
    for verb in (
        volume.revert,
        lambda: volume.import_data(MIB),
        lambda: volume.import_volume(other),
        lambda: volume.resize(MIB),
    ):
        with pytest.raises(StoragePoolException, match="run"):
            lab.run(verb())
    lab.stop(volume)
    assert lab.content(volume) == b"data"


def test_read_only_volume_is_not_resized(lab):
    volume = lab.private(content=b"x", rw=False)
    with pytest.raises(StoragePoolException, match="read-only"):
        lab.run(volume.resize(8 * MIB))


def test_snap_on_start_with_save_on_stop_is_refused(lab):
    root = lab.private("tmpl", name="root")
    both = lab.clone_of(root, save_on_stop=True)
    with pytest.raises(StoragePoolException, match="both"):
        lab.run(both.create())


def test_import_volume_ignores_disposable_volumes(lab):
    root = lab.private("tmpl", b"v1", name="root")
    app, other = lab.clone_of(root), lab.clone_of(root, "other")
    before = lab.datasets()
    lab.run(other.import_volume(app))
    assert lab.datasets() == before


def test_missing_source_is_reported(lab):
    root = lab.private("tmpl", name="root")
    app = lab.clone_of(root)
    lab.run(root.remove())
    for verb in app.verify, app.start:
        with pytest.raises(StoragePoolException, match="missing on disk"):
            lab.run(verb())


def test_full_pool_loses_no_committed_content(lab):
    volume = lab.private(content=b"one", size=8 * MIB)
    big = lab.private("big", b"old", size=8 * MIB)
    sh("zfs", "set", "quota=1M", lab.container)
    with pytest.raises(OSError):
        write(lab.run(big.import_data(8 * MIB)), os.urandom(8 * MIB))
    lab.run(big.import_data_end(False))
    lab.start(volume)
    with pytest.raises(OSError):
        write(volume.path, b"two".ljust(512, b"\0") + os.urandom(8 * MIB - 512))
    lab.stop(volume)
    sh("zfs", "set", "quota=none", lab.container)
    lab.run(volume.stop())
    assert not volume.is_dirty()
    assert lab.content(volume, 3) in (b"one", b"two")
    assert "r1" in volume.revisions
    assert lab.content(big) == b"old"


def test_lack_of_space_is_reported(away):
    volume = away.private(content=b"one")
    sh("zfs", "create", "away/filler")
    free = int(sh("zfs", "get", "-Hpo", "value", "available", "away"))
    sh("zfs", "set", f"reservation={free - 600000}", "away/filler")
    with pytest.raises(StoragePoolException, match="no space left"):
        for number in range(50):
            away.private(f"q{number}")
    with pytest.raises(StoragePoolException, match="no space left"):
        for _ in range(20):
            away.run(volume.export())
    sh("zfs", "destroy", "away/filler")
    assert away.content(volume) == b"one"


def test_resize_without_space_to_commit_reports_the_size_on_disk(away):
    """Setting volsize succeeds with less space than the commit after it."""
    volume = away.private(content=b"one", size=16 * MIB)
    sh("zfs", "create", "away/filler")
    free = int(sh("zfs", "get", "-Hpo", "value", "available", "away"))
    resized = 0
    for left in range(0, 512 << 10, 64 << 10):
        before, refused = volume.size, False
        sh("zfs", "set", f"reservation={free - left}", "away/filler")
        try:
            away.run(volume.resize(before - (64 << 10)))
        except StoragePoolException as exc:
            assert "no space left" in str(exc)
            refused = True
        dataset = volume.dataset
        on_disk = int(sh("zfs", "get", "-Hpo", "value", "volsize", dataset))
        assert volume.size == on_disk, left
        resized += refused and on_disk < before
        sh("zfs", "set", "reservation=none", "away/filler")
        away.run(volume.stop())
    assert resized
    assert away.content(volume) == b"one"


def test_stop_commits_the_page_cache(lab):
    """A process in dom0 wrote without a flush and keeps the device open."""
    volume = lab.private(content=b"old")
    lab.start(volume)
    with open_device(volume.path, os.O_RDWR) as opened:
        opened.write(b"new".ljust(4096, b"\0"))
        opened.flush()
        lab.stop(volume)
        assert lab.content(volume) == b"new"


def test_busy_error_names_the_process(lab):
    volume = lab.private(content=b"data")
    clone = volume.where.generation(1)
    sh("zfs", "clone", f"{volume.dataset}@r2", clone)
    path = asyncio.run(devices.wait_for_link(clone))

    async def destroy():
        await devices.retry_busy(clone, lambda: lzc.destroy(clone), 0.3)

    with open(path, "rb"), pytest.raises(lzc.errors.Busy) as caught:
        asyncio.run(destroy())
    assert any(f"process {os.getpid()}" in who for who in caught.value.holders)


@pytest.mark.parametrize("lost", [0, 1])
def test_missing_link_is_requested_again(lab, monkeypatch, lost):
    """The driver repeats the request if the first one had no effect."""
    asked, nudge = [], devices._nudge

    async def nudge_after(dataset, held):
        asked.append(dataset)
        if len(asked) > lost:
            await nudge(dataset, held)
            # an open may fail for the first process; that must not be udev
            assert node in (file.resolve() for file in open_files.iterdir())

    monkeypatch.setattr(devices, "_nudge", nudge_after)
    volume = lab.private(content=b"data")
    subprocess.run(["udevadm", "settle"], check=False)
    node, open_files = Path(volume.path).resolve(), Path("/proc/self/fd")
    Path(volume.path).unlink()
    monkeypatch.setattr(devices, "NUDGE_AFTER", 0.2)
    lab.start(volume)
    assert node not in [file.resolve() for file in open_files.iterdir()]
    assert read(volume.path) == b"data"
    lab.stop(volume)


def test_missing_node_is_created_again(lab, monkeypatch):
    volume = lab.private(content=b"data")
    subprocess.run(["udevadm", "settle"], check=False)
    inhibit = Path(commands.INHIBIT)
    sh("zfs", "set", "volmode=none", volume.dataset)
    inhibit.write_text("1")
    try:
        sh("zfs", "inherit", "volmode", volume.dataset)
        while devices.name_of_node(volume.path) is not None:
            time.sleep(0.1)
    finally:
        inhibit.write_text("0")
    monkeypatch.setattr(devices, "NUDGE_AFTER", 0.2)
    lab.start(volume)
    assert read(volume.path) == b"data"
    lab.stop(volume)


@pytest.fixture
def late_removals(lab):
    """Keep a destroyed zvol open, which delays the removal of other nodes.

    OpenZFS 2.4 and later remove the node of a destroyed zvol at once.
    """
    if not lzc.module_version().startswith("2.3"):
        yield
        return
    dataset = f"{lab.container}/held"
    sh("zfs", "create", "-s", "-V", "4M", dataset)
    subprocess.run(["udevadm", "settle"], check=False)
    with open(f"/dev/zvol/{dataset}", "rb"):
        hidden = subprocess.Popen(["zfs", "set", "volmode=none", dataset])
        time.sleep(1)
        yield
    hidden.wait()
    sh("zfs", "destroy", dataset)


def test_exports_never_reuse_a_name(lab, late_removals, monkeypatch):
    """A zvol gets no node while an earlier zvol of its name still has one."""
    monkeypatch.setattr(devices, "NUDGE_AFTER", 99.0)
    volume = lab.private(content=b"data")

    async def exported():
        path = await volume.export()
        assert await asyncio.to_thread(read, path) == b"data"
        await volume.export_end(path)
        return path

    assert len({lab.run(exported()) for _ in range(3)}) == 3


def test_wrong_link_is_not_followed(lab, monkeypatch):
    volume = lab.private(content=b"data")
    other = lab.private("other", b"not yours")
    subprocess.run(["udevadm", "settle"], check=False)
    node = os.readlink(other.path)
    Path(volume.path).unlink()
    Path(volume.path).symlink_to(node)
    monkeypatch.setattr(devices, "NUDGE_AFTER", 0.2)
    lab.start(volume)
    assert read(volume.path) == b"data"
    lab.stop(volume)


def test_missing_device_is_reported(lab, monkeypatch):
    volume = lab.private(content=b"data")
    subprocess.run(["udevadm", "settle"], check=False)
    link = Path(volume.path)
    link.unlink()
    monkeypatch.setattr(devices, "LINK_LIMIT", 1.0)
    monkeypatch.setattr(devices, "NUDGE_AFTER", 9.0)
    with pytest.raises(StoragePoolException, match="did not appear"):
        lab.run(volume.start())
    monkeypatch.undo()
    subprocess.run(
        ["udevadm", "trigger", "--action=change", "--subsystem-match=block"],
        check=False,
    )
    lab.start(volume)
    lab.stop(volume)


def test_many_qubes_run_concurrently(lab, patience):
    root = lab.private("tmpl", b"v1", name="root")
    qubes = []
    for number in range(8):
        name = f"q{number}"
        private = lab.volume(name, save_on_stop=True)
        qubes.append((lab.clone_of(root, name), lab.volatile(name), private))

    async def life(volumes):
        await asyncio.gather(*(volume.create() for volume in volumes))
        await asyncio.gather(*(volume.start() for volume in volumes))
        assert read(volumes[0].path) == b"v1"
        path = await volumes[2].export()
        await asyncio.gather(*(volume.stop() for volume in volumes))
        await volumes[2].export_end(path)
        await asyncio.gather(*(volume.remove() for volume in volumes))

    async def all_lives():
        await asyncio.gather(*(life(volumes) for volumes in qubes))

    asyncio.run(all_lives())
    assert lab.sweep_until(lambda: len(lab.datasets("volume")) == 1)
    assert lab.datasets("volume,filesystem") == [
        "vm",
        "vm/tmpl",
        "vm/tmpl/root",
    ]


@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.3])
def test_cancelled_operation_leaves_old_or_new_content(lab, after):
    volume = lab.private(content=b"one", revisions_to_keep=5)
    source = lab.private("source", b"two")

    async def cancelled(verb):
        task = asyncio.ensure_future(verb)
        await asyncio.sleep(after)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass

    asyncio.run(cancelled(volume.import_volume(source)))
    assert lab.content(volume) in (b"one", b"two")
    asyncio.run(cancelled(volume.export()))
    asyncio.run(cancelled(volume.revert("r1")))
    assert lab.content(volume) in (b"", b"one", b"two")
    lab.restart()
    volume = lab.again(volume)
    lab.run(volume.stop())
    lab.run(lab.again(source).remove())
    lab.run(volume.remove())
    assert lab.sweep_until(lambda: lab.datasets() == ["vm"])


def test_second_set_of_objects_shares_garbage_collection(lab):
    """qvm-backup builds all pools and volumes again in the same process."""
    volume = lab.private(content=b"data")
    path = lab.run(volume.import_data(MIB))
    second = type(lab.pool)(name=lab.name, **lab.options)
    copy = second.init_volume(
        lab.vm("work"),
        {"name": "private", "rw": True, "save_on_stop": True, "size": MIB},
    )
    exported = lab.run(copy.export())
    lab.run(second.store.collect_garbage())
    assert read(exported) == b"data"
    lab.run(copy.export_end(exported))
    write(path, b"new")
    lab.run(volume.import_data_end(True))
    assert lab.content(copy) == b"new"


def test_collect_keeps_generations_of_another_process(lab):
    volume = lab.private(content=b"data")
    script = (
        "import asyncio, sys\n"
        "sys.path[:0] = ['.']; sys.path.append('tests/host')\n"
        "from qubes_storage_zfs.store.container import holder_mark\n"
        "from qubes_storage_zfs.zfs import lzc\n"
        "asyncio.run(lzc.clone(sys.argv[1], sys.argv[2], holder_mark()))\n"
        "print('made', flush=True); sys.stdin.read()\n"
    )
    clone = volume.where.generation(7)
    with subprocess.Popen(
        ["python3", "-c", script, clone, f"{volume.dataset}@r2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "made\n"
        lab.run(lab.pool.store.collect_garbage())
        assert clone in sh("zfs", "list", "-Ho", "name")
        process.stdin.close()
    assert lab.sweep_until(
        lambda: clone not in sh("zfs", "list", "-Ho", "name")
    )


def test_revert_without_revisions_is_refused(lab):
    volume = lab.private()
    with pytest.raises(StoragePoolException, match="no revision to revert"):
        lab.run(volume.revert())


def test_stop_of_a_disposable_volume_keeps_a_kept_one_of_its_name(lab):
    kept = lab.private("work", b"precious", name="root")
    root = lab.private("tmpl", b"v1", name="root")
    lab.restart()
    root = lab.again(root)
    app = lab.clone_of(root, "work")
    with pytest.raises(StoragePoolException, match="already exists"):
        lab.run(app.start())
    lab.run(app.stop())
    assert lab.content(lab.again(kept)) == b"precious"


def test_cancelled_import_without_revisions_leaves_old_or_new_content(lab):
    """Without revisions there is no other copy of the data."""
    volume = lab.private(content=b"one", revisions_to_keep=-1)
    source = lab.private("source", b"two")
    seen = set()
    for after in 0.0, 0.03, 0.06, 0.12, 0.25:

        async def cancelled(after=after):
            task = asyncio.ensure_future(volume.import_volume(source))
            await asyncio.sleep(after)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(cancelled())
        seen.add(lab.content(volume))
    assert seen <= {b"one", b"two"}
