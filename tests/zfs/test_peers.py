# SPDX-License-Identifier: BSD-2-Clause
"""Defects of other drivers; each test fails with their design."""

import asyncio
import time
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.store.container import Container
from qubes_storage_zfs.zfs import devices, zcp

from ..support.background import afterwards
from ..support.zpools import MIB, export_zpool, read, sh, write


class Died(BaseException):
    """The process ended here."""


def die_before(monkeypatch, program):
    """Kill qubesd when it is about to run a channel program."""
    run = zcp.run

    def dying(programs, sync):
        if program in (item.name for item in programs):
            raise Died
        return run(programs, sync)

    monkeypatch.setattr(zcp, "run", dying)


def die_before_switch(lab, monkeypatch, operation):
    with monkeypatch.context() as patch:
        die_before(patch, "make_current")
        # a dead process does not clean up
        patch.setattr(Container, "discard", _nothing)
        with pytest.raises(Died):
            lab.run(operation())
    lab.restart()


async def _nothing(*_):
    pass


def test_killed_import_data_keeps_the_old_content(lab, monkeypatch):
    volume = lab.private(content=b"old")
    write(lab.run(volume.import_data(MIB)), b"new")
    die_before_switch(lab, monkeypatch, lambda: volume.import_data_end(True))
    volume = lab.again(volume)
    assert lab.run(volume.verify())
    lab.run(volume.stop())
    assert lab.content(volume) == b"old"
    assert list(volume.revisions) == ["r1"]
    assert lab.datasets("volume") == ["vm/work/private"]


def test_killed_import_volume_keeps_the_old_content(lab, monkeypatch):
    source = lab.private("a", b"new")
    volume = lab.private("b", b"old")
    die_before_switch(lab, monkeypatch, lambda: volume.import_volume(source))
    source, volume = lab.again(source), lab.again(volume)
    lab.run(volume.stop())
    assert lab.content(volume) == b"old"
    lab.run(volume.import_volume(source))
    assert lab.content(volume) == b"new"


def test_interrupted_import_does_not_block_the_qube(lab):
    volume = lab.private(content=b"old")
    write(lab.run(volume.import_data(MIB)), b"half")
    lab.restart()
    volume = lab.again(volume)
    lab.start(volume)
    assert read(volume.path) == b"old"
    lab.stop(volume)
    lab.run(volume.revert())
    lab.replace(volume, b"whole")
    assert lab.content(volume) == b"whole"
    lab.run(volume.remove())
    assert lab.datasets() == ["vm"]


def test_abandoned_import_does_not_block_a_start(lab):
    volume = lab.private(content=b"old")
    lab.run(volume.import_data(MIB))
    lab.start(volume)
    lab.stop(volume)
    with pytest.raises(
        StoragePoolException, match="no import into this volume is running"
    ):
        lab.run(volume.import_data_end(True))


def test_start_and_import_are_refused_while_an_import_is_written(lab):
    volume = lab.private(content=b"old")
    with open(lab.run(volume.import_data(MIB)), "r+b"):
        for operation in volume.start(), volume.import_data(MIB):
            with pytest.raises(StoragePoolException, match="process"):
                lab.run(operation)
    lab.run(volume.import_data_end(False))
    lab.run(volume.start())


def test_revert_with_existing_clones_loses_no_revision(lab):
    volume = lab.private(content=b"one", revisions_to_keep=5)
    other = lab.private("other")
    lab.run(other.import_volume(volume))
    lab.session(volume, b"two")
    app = lab.clone_of(volume)
    lab.start(app)
    lab.session(volume, b"three")
    before = set(volume.revisions)
    lab.run(volume.revert("r2"))
    assert before < set(volume.revisions)
    assert lab.content(volume) == b"one"
    assert read(app.path) == b"two"
    assert lab.content(other) == b"one"
    lab.run(volume.revert("r3"))
    assert lab.content(volume) == b"two"
    lab.run(volume.revert("r4"))
    assert lab.content(volume) == b"three"
    lab.stop(app)


def test_removal_of_a_source_passes_no_revision_to_its_clone(lab):
    source = lab.private("source", b"SECRET", revisions_to_keep=5)
    lab.session(source, b"public")
    clone = lab.private("clone")
    lab.run(clone.import_volume(source))
    before = clone.revisions
    lab.run(source.remove())
    assert clone.revisions == before
    for revision in clone.revisions:
        lab.run(clone.revert(revision))
        assert lab.content(clone) != b"SECRET"
    assert "SECRET" not in str(lab.datasets())
    assert not any("r2" in name for name in lab.datasets() if "source" in name)
    # the origin of the clone is destroyed with it
    lab.run(clone.remove())
    assert lab.datasets() == ["vm"]


def test_name_of_a_removed_source_can_be_used_again(lab):
    source = lab.private("source", b"SECRET")
    clone = lab.private("clone")
    lab.run(clone.import_volume(source))
    lab.run(source.remove())
    again = lab.private("source")
    assert again.revisions == {}
    assert lab.content(again) == b""
    lab.run(clone.remove())
    lab.run(again.remove())
    assert lab.datasets() == ["vm"]


def test_import_keeps_the_old_revisions(lab):
    volume = lab.private(content=b"old", revisions_to_keep=3)
    lab.replace(volume, b"new")
    assert list(volume.revisions) == ["r1", "r2"]
    lab.run(volume.revert("r2"))
    assert lab.content(volume) == b"old"


def test_blank_first_state_is_no_revision_of_a_clone(lab):
    """create() and then import is how qubesd clones and restores; a revert
    must not lead to an empty disk."""
    source = lab.private("source", b"data")
    clone = lab.private("clone")
    lab.run(clone.import_volume(source))
    restored = lab.private("restored")
    lab.replace(restored, b"data")
    for volume in clone, restored:
        assert volume.revisions == {}
        assert lab.content(volume, 4) == b"data"
    used = lab.private("used")
    lab.session(used, b"mine")
    lab.run(used.import_volume(source))
    assert list(used.revisions) == ["r1", "r2"]
    snapshots = [name for name in lab.datasets() if name.endswith("@r1")]
    assert snapshots == ["vm/source/private@r1", "vm/used/private@r1"]


def test_changes_by_zfs_commands_are_noticed_at_once(lab):
    volume = lab.private(content=b"one", revisions_to_keep=5)
    lab.session(volume, b"two")
    assert list(volume.revisions) == ["r1", "r2"]
    sh("zfs", "destroy", f"{volume.dataset}@r2")
    assert list(volume.revisions) == ["r1"]
    with pytest.raises(StoragePoolException, match="no revision r2"):
        lab.run(volume.revert("r2"))
    sh("zfs", "rename", f"{lab.container}/vm/work", f"{lab.container}/away")
    with pytest.raises(StoragePoolException, match="missing on disk"):
        lab.run(volume.verify())
    assert lab.pool.list_volumes() == []
    sh("zfs", "rename", f"{lab.container}/away", f"{lab.container}/vm/work")
    assert lab.run(volume.verify())
    assert lab.content(volume) == b"two"


def test_volume_created_by_zfs_commands_is_found(lab):
    volume = lab.private("work", b"data")
    qubes_root = f"{lab.container}/vm"
    with pytest.raises(KeyError):
        lab.pool.get_volume("copy/private")
    sh("zfs", "create", f"{qubes_root}/copy")
    sh("zfs", "clone", f"{volume.dataset}@r2", f"{qubes_root}/copy/private")
    sh(
        "zfs",
        "set",
        "qubes-storage-zfs:current.private=0",
        f"{qubes_root}/copy",
    )
    copy = lab.pool.get_volume("copy/private")
    assert lab.content(copy) == b"data"


def test_absent_zpool_is_reported_and_works_after_an_import(away):
    volume = away.private(content=b"data")
    export_zpool("away")
    away.restart()
    volume = away.again(volume)
    assert away.pool.size is None and away.pool.usage is None
    assert away.pool.usage_details == {}
    assert away.pool.list_volumes() == []
    (line,) = volume.revisions
    assert line.startswith("unknown:_the_zpool_away_is_not_imported_")
    assert volume.usage == 0 and volume.path is None
    assert volume.size == 4 * MIB
    assert not volume.is_dirty()
    away.run(volume.stop())
    for operation in volume.verify, volume.start, volume.export, volume.remove:
        with pytest.raises(StoragePoolException, match="not imported"):
            away.run(operation())
    sh("zpool", "import", "-d", "/tmp", "away")
    assert away.run(volume.verify())
    away.session(volume, b"more")
    assert list(volume.revisions) == ["r1", "r2"]
    assert away.content(volume) == b"more"
    assert away.pool.usage > 0
    away.run(volume.remove())
    assert away.datasets() == ["vm"]


def test_busy_volume_delays_no_other(lab, monkeypatch):
    """Another driver locks the whole pool, so a busy device blocks all qubes."""
    busy, other = lab.volatile("busy"), lab.private("other", b"x")
    lab.start(busy)
    write(busy.path, b"x")
    times = {}

    async def both():
        async def timed(name, operations):
            begin = time.monotonic()
            for operation in operations:
                await operation()
            times[name] = time.monotonic() - begin

        await asyncio.gather(
            timed("busy", [busy.stop, afterwards]),
            timed("other", [other.start, other.stop]),
        )

    with open(busy.path, "rb"):
        asyncio.run(both())
    assert times["other"] < times["busy"]
    assert lab.sweep_until(
        lambda: [name for name in lab.datasets("volume") if "busy" in name]
        == ["vm/busy/volatile.1"]
    )


def test_size_respects_quota(make_lab, zpool):
    lab = make_lab()
    sh("zfs", "set", "quota=100M", lab.container)
    assert 90 * MIB < lab.pool.size <= 100 * MIB
    assert lab.pool.usage < MIB
    assert lab.pool.usage_details == {
        "data_size": lab.pool.size,
        "data_usage": lab.pool.usage,
    }


def test_usage_of_a_root_clone_excludes_its_source(lab):
    root = lab.private("tmpl", name="root")
    lab.session(root, bytes(range(256)) * 4096)
    assert root.usage > 1000000
    app = lab.clone_of(root)
    lab.start(app)
    assert app.usage < 100000
    lab.stop(app)


def test_stop_after_a_restart_commits_the_session(lab):
    """Another driver clears its dirty mark before it creates the snapshot."""
    volume = lab.private(content=b"one")
    lab.start(volume)
    write(volume.path, b"two")
    lab.restart()
    volume = lab.again(volume)
    Path(volume.state_file).unlink()
    # ZFS counts written data only after a sync
    sh("zpool", "sync", lab.pool.zpool)
    assert volume.is_dirty()
    assert lab.content(volume) == b"one"
    lab.run(volume.stop())
    assert not volume.is_dirty()
    assert lab.content(volume) == b"two"


def test_foreign_snapshots_hide_no_changes_and_are_kept(lab):
    volume = lab.private(content=b"one")
    lab.start(volume)
    write(volume.path, b"two")
    sh("zfs", "snapshot", f"{volume.dataset}@autosnap")
    lab.stop(volume)
    assert lab.content(volume) == b"two"
    lab.session(volume, b"three")
    # promoting a newer revision would move the foreign snapshot
    lab.run(volume.revert())
    assert lab.content(volume) == b"two"
    assert "vm/work/private@autosnap" in lab.datasets("snapshot")
    for text in b"3", b"4", b"5", b"6":
        lab.session(volume, text)
    assert "vm/work/private@autosnap" in lab.datasets("snapshot")
    lab.run(volume.remove())
    assert "vm/work/private@autosnap" in lab.datasets("snapshot")
    with pytest.raises(KeyError):
        lab.pool.get_volume("work/private")


def test_foreign_datasets_beside_volumes_are_kept(lab):
    volume = lab.private(content=b"data")
    qubes_root = f"{lab.container}/vm"
    sh("zfs", "clone", f"{volume.dataset}@r2", f"{qubes_root}/work/recovery")
    sh("zfs", "create", "-s", "-V", "1M", f"{qubes_root}/work/other")
    write(lab.run(devices.wait_for_link(f"{qubes_root}/work/other")), b"mine")
    sh("zfs", "create", f"{qubes_root}/work/notes")
    lab.run(lab.pool.store.collect_garbage())
    lab.run(volume.remove())
    left = lab.datasets("volume,filesystem")
    assert {"vm/work/recovery", "vm/work/other", "vm/work/notes"} < set(left)


def test_revision_is_the_state_at_stop(lab):
    """Another driver creates the snapshot at the next start, one revision late."""
    volume = lab.private(revisions_to_keep=1)
    lab.session(volume, b"one")
    lab.session(volume, b"two")
    (only,) = volume.revisions
    lab.run(volume.revert(only))
    assert lab.content(volume) == b"one"


def test_is_outdated_compares_snapshots_and_no_dates(lab):
    root = lab.private("tmpl", b"v1", name="root")
    app = lab.clone_of(root)
    lab.start(app)
    lab.session(root, b"v2")
    assert app.is_outdated()
    lab.stop(app)
    lab.start(app)
    assert not app.is_outdated()
    lab.run(root.revert())
    assert app.is_outdated()
    lab.stop(app)


def test_container_can_be_renamed(lab):
    """The vid of another driver is the full name of the dataset."""
    volume = lab.private(content=b"data")
    assert volume.vid == "work/private"
    moved = lab.container + "-moved"
    sh("zfs", "rename", lab.container, moved)
    lab.container = moved
    lab.options["container"] = moved
    lab.restart()
    assert lab.content(lab.again(volume)) == b"data"
