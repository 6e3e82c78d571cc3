# SPDX-License-Identifier: BSD-2-Clause
"""Prepared volumes are as clean as new ones at the next start."""

import asyncio
import os
import types

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver.phases import Phase
from qubes_storage_zfs.zfs import batch, devices, runtime

from ..support.counting import cost, quiet, rest
from ..support.operations import together
from ..support.zpools import MIB, open_device, read, sh, write


@pytest.fixture
def qube(lab):
    """Return root and volatile of a qube that has run, and its template's root."""
    template = lab.private("tmpl", b"v1", name="root", revisions_to_keep=0)
    root, volatile = lab.clone_of(template), lab.volatile("app")
    live(lab, root, volatile)
    return root, volatile, template


def live(lab, *volumes):
    lab.start(*volumes)
    for volume in volumes:
        write(volume.path, b"session")
    lab.stop(*volumes)


def prepare(lab, *volumes):
    async def begun():
        for volume in volumes:
            volume.preparation.request()

    lab.run(begun())


def guids(lab, *volumes):
    names = [volume.dataset for volume in volumes]
    return sh("zfs", "get", "-Hpo", "value", "guid", *names).split()


def test_start_of_prepared_volumes_waits_for_no_txg(lab, qube):
    root, volatile, _ = qube
    before = guids(lab, root, volatile)
    with quiet():
        rest(lab.pool.zpool)
        with cost(lab.pool.zpool) as spent:
            lab.run(together(root.start, volatile.start))
    assert spent.calls == ["state+state"] and spent.txgs == 0
    assert guids(lab, root, volatile) == before
    assert read(root.path) == b"v1" and read(volatile.path) == b""
    lab.stop(root, volatile)


def test_stop_resets_disposable_volumes(lab, qube):
    for volume in qube[:2]:
        name = volume.dataset
        written = sh("zfs", "get", "-Hpo", "value", "written@s1", name)
        assert int(written) == 0
        with open_device(volume.path, os.O_RDONLY) as file:
            assert b"session" not in file.read(4 * MIB)


def test_commit_of_a_source_frees_its_old_state(lab, qube):
    root, volatile, template = qube
    lab.session(template, b"v2")
    assert not any("app/root" in name for name in lab.datasets())
    snapshots = [name for name in lab.datasets("snapshot") if "tmpl" in name]
    assert len(snapshots) == 1
    lab.start(root, volatile)
    assert read(root.path) == b"v2"
    lab.stop(root, volatile)


def test_removed_volume_is_listed_again_when_it_is_used(lab, qube):
    """qubesd keeps a qube if one of its volumes cannot be removed."""
    root, volatile, template = qube
    lab.run(root.remove())
    lab.session(root, b"scribble")
    assert lab.pool.get_volume(root.vid) is root
    assert any("app/root" in name for name in lab.datasets())
    lab.session(template, b"v2")
    assert not any("app/root" in name for name in lab.datasets())


@pytest.mark.parametrize("operation", ["import", "clone", "revert", "remove"])
def test_replacement_of_a_source_frees_its_old_state(lab, qube, operation):
    root, _, template = qube
    if operation == "revert":
        template.revisions_to_keep = 2
        lab.session(template, b"v2")
        live(lab, root)
    assert any("app/root" in name for name in lab.datasets())
    match operation:
        case "import":
            lab.replace(template, b"new")
        case "clone":
            other = lab.private("other", b"v3")
            lab.run(template.import_volume(other))
        case "revert":
            lab.run(template.revert())
        case "remove":
            lab.run(template.remove())
            assert not any("tmpl" in name for name in lab.datasets())
    assert not any("app/root" in name for name in lab.datasets())


def test_source_committed_while_its_clone_is_prepared(lab, qube, monkeypatch):
    root, _, template = qube
    lab.start(root, template)
    write(template.path, b"v2")
    wait_for_link = devices.wait_for_link

    async def commit_first(dataset):
        if f"/{root.vid}" in dataset:
            await template.stop()
        return await wait_for_link(dataset)

    monkeypatch.setattr(devices, "wait_for_link", commit_first)
    lab.stop(root)
    assert template.lifecycle.phase is Phase.HALTED
    snapshots = [name for name in lab.datasets("snapshot") if "tmpl" in name]
    assert len(snapshots) == 1


def test_commit_of_a_source_while_its_clone_stops_frees_its_old_state(
    lab, qube
):
    root, _, template = qube
    lab.start(root)
    lab.start(template)
    write(template.path, b"v2")

    lab.run(together(root.stop, template.stop))
    snapshots = [name for name in lab.datasets("snapshot") if "tmpl" in name]
    assert len(snapshots) == 1


def test_outdated_clone_is_not_used_after_a_restart_of_qubesd(
    lab, qube, monkeypatch
):
    """qubesd dies while it commits the template."""
    root, _, template = qube

    async def dead():
        pass

    monkeypatch.setattr(template.preparation, "note_commit", dead)
    lab.session(template, b"v2")
    assert any("app/root" in name for name in lab.datasets())
    lab.restart()
    root = lab.again(root)
    lab.run(root.stop())
    snapshots = [name for name in lab.datasets("snapshot") if "tmpl" in name]
    assert len(snapshots) == 1
    lab.start(root)
    assert read(root.path) == b"v2"
    lab.stop(root)


def test_first_start_uses_prepared_volumes(lab, qube):
    _, _, template = qube
    root, volatile = lab.clone_of(template, "new"), lab.volatile("new")
    private = lab.private("new")

    prepare(lab, root, volatile, private)
    before = guids(lab, root, volatile)
    with quiet():
        rest(lab.pool.zpool)
        with cost(lab.pool.zpool) as spent:
            lab.run(together(root.start, volatile.start, private.start))
    assert spent.calls == ["state+state+state"] and spent.txgs == 0
    assert guids(lab, root, volatile) == before
    assert read(root.path) == b"v1" and read(volatile.path) == b""
    lab.stop(root, volatile, private)


@pytest.mark.parametrize("operation", ["start", "remove", "resize"])
def test_operation_before_the_preparation_finds_no_old_content(
    lab, qube, operation
):
    root, volatile, _ = qube
    lab.start(root, volatile)
    for volume in root, volatile:
        write(volume.path, b"secret")

    async def at_once():
        over = asyncio.Event()
        others = asyncio.create_task(take_their_time(over))
        await asyncio.sleep(0)
        await together(root.stop, volatile.stop)
        await verb_after()
        over.set()
        await others

    async def take_their_time(over):
        with batch.join(root.preparation.batch_key):
            await over.wait()

    async def verb_after():
        match operation:
            case "start":
                await together(root.start, volatile.start)
            case "remove":
                await together(root.remove, volatile.remove)
            case "resize":
                await volatile.resize(8 * MIB)

    lab.run(at_once())
    if operation == "remove":
        assert not any("app" in name for name in lab.datasets())
        return
    if operation == "resize":
        lab.start(root, volatile)
        with open_device(volatile.path, os.O_RDONLY) as file:
            assert file.seek(0, os.SEEK_END) == 8 * MIB
    assert read(root.path) == b"v1" and read(volatile.path) == b""
    lab.stop(root, volatile)


def test_preparation_keeps_a_volume_of_a_removed_qube(lab, qube):
    _, _, template = qube
    left = lab.private("gone", b"data", name="root")
    root = lab.clone_of(template, "gone")
    prepare(lab, root)
    with pytest.raises(StoragePoolException):
        lab.run(root.start())
    lab.run(root.stop())
    assert lab.content(left) == b"data"


def test_clone_without_a_source_is_not_prepared(lab, qube):
    root, _, template = qube
    lab.run(root.remove())
    lab.run(template.remove())
    prepare(lab, root)
    assert not any("app/root" in name for name in lab.datasets())


@pytest.mark.parametrize("stopped", [True, False])
def test_start_after_a_crash_of_qubesd_resets_disposable_volumes(
    lab, qube, stopped
):
    root, volatile, _ = qube
    lab.start(root, volatile)
    write(root.path, b"secret")
    write(volatile.path, b"secret")
    lab.restart()
    root = lab.again(root)
    volatile = lab.again(volatile)
    if stopped:
        lab.run(root.stop())
        lab.run(volatile.stop())
    lab.start(root, volatile)
    assert read(root.path) == b"v1" and read(volatile.path) == b""
    lab.stop(root, volatile)


@pytest.mark.parametrize("running", [True, False])
def test_resize_applies_to_the_next_start(lab, running):
    volume = lab.volatile(size=4 * MIB + 1)
    live(lab, volume)
    name = volume.dataset
    live(lab, volume)
    assert volume.dataset == name
    if running:
        lab.start(volume)
    lab.run(volume.resize(8 * MIB))
    if running:
        lab.stop(volume)
    lab.start(volume)
    with open_device(volume.path, os.O_RDONLY) as file:
        assert file.seek(0, 2) == 8 * MIB
    assert read(volume.path) == b""
    lab.stop(volume)


def test_reset_ignores_a_foreign_snapshot(lab, qube):
    _, volatile, _ = qube
    lab.start(volatile)
    write(volatile.path, b"secret")
    sh("zfs", "snapshot", f"{volatile.dataset}@mine")
    snapshot = f"{volatile.dataset}@mine"
    lab.stop(volatile)
    assert sh("zfs", "list", "-Ho", "name", snapshot).strip() == snapshot
    lab.start(volatile)
    assert read(volatile.path) == b""
    lab.stop(volatile)
    sh("zfs", "destroy", snapshot)
    lab.run(lab.pool.store.collect_garbage())
    assert len([name for name in lab.datasets("volume") if "app" in name]) == 2


def test_open_generation_is_not_used_again(lab, qube):
    _, volatile, _ = qube
    lab.start(volatile)
    write(volatile.path, b"secret")
    path, name = volatile.path, volatile.dataset
    with open_device(path, os.O_RDONLY):
        lab.stop(volatile)
        lab.start(volatile)
        assert volatile.dataset != name
        assert read(volatile.path) == b""
    lab.stop(volatile)


def test_clone_with_forensics_is_not_prepared(lab, qube):
    _, _, template = qube
    root = lab.clone_of(template, "other", snap_on_start_forensics=True)
    lab.session(root, b"traces")
    assert read(root.path) == b"traces"
    lab.start(root)
    assert read(root.path) == b"v1"
    lab.stop(root)


def test_disposable_qube_leaves_no_dataset(lab, qube):
    _, _, template = qube
    disposable = types.SimpleNamespace(name="disp1", auto_cleanup=True)
    app = types.SimpleNamespace(domains={"disp1": disposable})
    root, volatile = lab.clone_of(template, "disp1"), lab.volatile("disp1")
    root.app = volatile.app = app
    live(lab, root, volatile)
    assert not any("disp1" in name for name in lab.datasets())


def test_start_after_a_template_change_uses_the_new_template(lab, qube):
    """qubesd creates a new object when a qube gets another template."""
    lab.private("other", b"other", name="root")
    other = lab.pool.get_volume("other/root")
    root = lab.clone_of(other)
    lab.start(root)
    assert read(root.path) == b"other"
    lab.stop(root)


def test_slow_task_does_not_delay_its_batch_for_long(lab, monkeypatch):
    """One volume of a qube is slow; the others continue."""
    first, second = lab.volatile(), lab.private()
    times = {}

    async def slowly():
        with batch.join(first.preparation.batch_key):
            await asyncio.sleep(batch.PATIENCE * 4)
        times["slow"] = asyncio.get_running_loop().time()

    async def starts():
        await first.start()
        times["first"] = asyncio.get_running_loop().time()

    async def all_three():
        await asyncio.gather(slowly(), starts(), second.verify())

    with monkeypatch.context() as patch:
        patch.setattr(batch, "PATIENCE", 2.0)
        lab.run(all_three())
    assert times["first"] < times["slow"]
    lab.stop(first)


def test_cancelled_task_does_not_block_its_batch(lab):
    volumes = [lab.volatile(), lab.private()]

    async def one_is_cancelled():
        tasks = [asyncio.create_task(item.start()) for item in volumes]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, started = lab.run(one_is_cancelled())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert started is volumes[1]
    assert not len(runtime.of(batch.Batches))
    lab.stop(*volumes)


def test_collect_keeps_prepared_volumes(lab, qube):
    root, volatile, _ = qube
    before = lab.datasets()
    runtime.restart()
    lab.run(lab.pool.store.first_use())
    assert lab.datasets() == before
    assert guids(lab, root, volatile)
