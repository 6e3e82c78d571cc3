# SPDX-License-Identifier: BSD-2-Clause
"""No value on a disk decides whether a volume counts as written."""

import os

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.store import thresholds
from qubes_storage_zfs.store.thresholds import LARGEST, Blank
from qubes_storage_zfs.zfs import devices, importexport, lzc

from ..support.zpools import MIB, export_zpool, read, sh, write

#: the property that an earlier version wrote
BLANK = "qubes-storage-zfs:blank"


def number(name, dataset):
    return int(sh("zfs", "get", "-Hpo", "value", name, dataset))


def measured_too_much(lab):
    """Set the threshold of this process to a value above the maximum."""
    guid = importexport.guid(lab.pool.zpool)
    lab.pool.store.thresholds._blank = Blank(guid, 1, 1 << 40)


def test_forged_threshold_has_no_effect(lab):
    root = lab.private("tmpl", b"v1", name="root")
    private = lab.private("app", b"one")
    app, volatile = lab.clone_of(root), lab.volatile("app")
    stray = f"{lab.pool.qubes_root}/app/private.7"
    lab.run(lzc.create_volume(stray, MIB, 16384, {}))
    write(lab.run(devices.wait_for_link(stray)), b"stray")
    sh("zpool", "sync", lab.pool.zpool)
    forged = number("logicalreferenced", stray)
    sh("zfs", "set", f"{BLANK}={forged} 999999999999", lab.pool.qubes_root)

    lab.start(private, app, volatile)
    write(private.path, b"two")
    write(app.path, b"evil")
    write(volatile.path, b"evil")
    lab.restart()  # qubesd died, then the qube
    private, app, volatile = map(lab.again, (private, app, volatile))
    lab.run(lab.pool.first_use())
    assert stray.removeprefix(f"{lab.container}/") in lab.datasets()
    for volume in (private, app, volatile):
        lab.stop(volume)
    assert lab.content(private) == b"two"
    lab.start(app, volatile)
    assert read(app.path) == b"v1" and read(volatile.path) == b""
    lab.stop(app, volatile)


def test_create_with_a_forged_threshold_destroys_nothing(lab):
    private = lab.private(content=b"data")
    forged = number("logicalreferenced", private.dataset)
    sh("zfs", "set", f"{BLANK}={forged} {forged}", lab.pool.qubes_root)
    sh("zfs", "destroy", f"{private.dataset}@r1")
    lab.restart()
    with pytest.raises(StoragePoolException, match="already"):
        lab.run(lab.again(private).create())
    private = lab.again(private)
    lab.start(private)
    assert read(private.path) == b"data"
    lab.stop(private)


@pytest.mark.parametrize("ready", [True, False])
def test_reset_discards_the_smallest_write(lab, ready, monkeypatch):
    """The reset does not depend on any threshold."""
    monkeypatch.setattr(thresholds, "LARGEST", 1 << 30)
    root = lab.private("tmpl", b"v1", name="root")
    app, volatile = lab.clone_of(root), lab.volatile("app")
    lab.start(app, volatile)
    measured_too_much(lab)
    for volume in (app, volatile):
        write(volume.path, b"evil")
    sh("zpool", "sync", lab.pool.zpool)
    assert 0 < number("written@s1", volatile.dataset) < 1 << 30
    if ready:
        lab.stop(app, volatile)
    lab.start(app, volatile)
    assert read(app.path) == b"v1" and read(volatile.path) == b""
    lab.stop(app, volatile)


def test_stop_commits_writes_above_the_largest_threshold(lab):
    volume = lab.private(content=b"one")
    measured_too_much(lab)
    lab.start(volume)
    write(volume.path, b"two" + os.urandom(MIB))
    sh("zpool", "sync", lab.pool.zpool)
    assert number("written", volume.dataset) > LARGEST
    lab.stop(volume)
    assert lab.content(volume, 3) == b"two"


def test_unmarked_zvols_are_measured_before_they_are_collected(lab):
    """A crash left an unwritten zvol without its mark."""
    volume = lab.private(content=b"data")
    for name in ("private.5", "private.6"):
        dataset = f"{lab.pool.qubes_root}/work/{name}"
        lab.run(lzc.create_volume(dataset, MIB, 16384, {}))
    write(lab.run(devices.wait_for_link(dataset)), b"kept")
    sh("zpool", "sync", lab.pool.zpool)
    lab.restart()
    assert not lab.pool.store.thresholds.measured
    assert lab.sweep_until(lambda: "vm/work/private.5" not in lab.datasets())
    assert lab.datasets("volume") == ["vm/work/private", "vm/work/private.6"]
    assert lab.content(lab.again(volume)) == b"data"


def imported_again(away):
    """Export and import the zpool; return a volume in it and its revisions."""
    volume = away.private(content=b"data")
    listed = volume.view.committed_ids()
    export_zpool("away")
    sh("zpool", "import", "-N", "-d", "/tmp", "away")
    away.restart()
    return away.again(volume), listed


@pytest.mark.parametrize("started", [False, True])
def test_write_by_a_zpool_import_is_measured_and_not_committed(
    away, monkeypatch, started
):
    """Data that ZFS writes at an import is not a change of a volume.

    This holds even above the threshold of a process without a measurement.
    """
    volume, listed = imported_again(away)
    if started:
        away.start(volume)
    sh("zpool", "sync", "away")
    assert number(f"written@{listed[-1]}", volume.dataset) > 0
    for line in "UNMEASURED", "DOUBTFUL":
        monkeypatch.setattr(thresholds, line, 0)
    assert not away.pool.store.thresholds.measured
    away.stop(volume)
    assert away.pool.store.thresholds.measured
    assert volume.view.committed_ids() == listed
    # prepared clones of it stay
    assert started or volume.commits == 0
    assert away.datasets("volume") == ["vm/work/private"]


def test_write_by_a_zpool_import_is_not_committed_without_a_measurement(
    away, monkeypatch
):
    """The driver cannot create a zvol for measuring in a locked pool."""
    volume, listed = imported_again(away)
    away.start(volume)
    sh("zpool", "sync", "away")
    assert number(f"written@{listed[-1]}", volume.dataset) > 0
    monkeypatch.setattr(thresholds, "DOUBTFUL", 0)

    async def cannot(name):
        return False

    monkeypatch.setattr(away.pool.store, "measure_beside", cannot)
    away.stop(volume)
    assert not away.pool.store.thresholds.measured
    assert volume.view.committed_ids() == listed


@pytest.mark.parametrize("started", [False, True])
def test_smallest_change_is_committed_without_a_measurement(away, started):
    """The disk has sectors of 512 bytes, and ZFS stores metadata once."""
    sh("zfs", "set", "redundant_metadata=none", away.pool.qubes_root)
    volume = away.private(content=b"one")
    away.session(volume, b"two")
    away.restart()
    volume = away.again(volume)
    away.start(volume)
    listed = volume.view.committed_ids()
    write(volume.path, b"new")
    sh("zpool", "sync", "away")
    written = number(f"written@{listed[-1]}", volume.dataset)
    assert thresholds.DOUBTFUL < written
    print(f"the smallest change writes {written} bytes")
    if not started:  # qubesd died
        away.restart()
        volume = away.again(volume)
    assert not away.pool.store.thresholds.measured
    away.stop(volume)
    assert volume.view.committed_ids()[-1] > listed[-1]
    assert away.content(volume, 3) == b"new"
