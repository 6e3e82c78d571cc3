# SPDX-License-Identifier: BSD-2-Clause
"""Content and datasets that are kept, destroyed or waited for."""

import os
import threading
import time
from pathlib import Path

import pytest

from qubes_storage_zfs.store.state import StateQuery

from ..support.zpools import MIB, open_device, read, sh, write


def _died_after_writing(lab, text, **config):
    """Return a volume whose qube died while qubesd did not run; no stop yet."""
    volume = lab.private(content=b"one", revisions_to_keep=5, **config)
    lab.start(volume)
    write(volume.path, text)
    Path(volume.state_file).unlink()
    return volume


def test_import_keeps_uncommitted_content_as_a_revision(lab):
    source = lab.private("source", b"new")
    volume = _died_after_writing(lab, b"two")
    # nothing is written after this snapshot
    sh("zfs", "snapshot", f"{volume.dataset}@autosnap")
    lab.run(volume.import_volume(source))
    assert lab.content(volume) == b"new"
    lab.run(volume.revert())
    assert lab.content(volume) == b"two"


def test_revert_keeps_uncommitted_content_as_a_revision(lab):
    volume = _died_after_writing(lab, b"two")
    lab.restart()
    volume = lab.again(volume)
    assert list(volume.revisions) == ["r1"]
    lab.run(volume.revert("r2"))
    assert volume.dataset.endswith("/private.1")
    assert lab.content(volume) == b"one"
    lab.run(volume.revert())
    assert lab.content(volume) == b"two"


def test_revert_undoes_a_shrink_of_uncommitted_content(lab):
    volume = _died_after_writing(lab, b"two", size=4 * MIB)
    write(volume.path, b"end", offset=3 * MIB)
    lab.run(volume.resize(2 * MIB))
    lab.run(volume.revert())
    assert volume.size == 4 * MIB
    path = lab.run(volume.export())
    assert read(path, offset=3 * MIB) == b"end"
    assert read(path) == b"two"
    lab.run(volume.export_end(path))


def test_export_end_waits_until_the_device_is_closed(lab):
    """udev opens every zvol for a moment after each event."""
    volume = lab.private(content=b"data")
    path = lab.run(volume.export())
    probe = open_device(path, os.O_RDONLY)
    threading.Timer(0.5, probe.close).start()
    lab.run(volume.export_end(path))
    assert probe.closed
    assert lab.datasets("volume") == ["vm/work/private"]


@pytest.mark.parametrize("keep", [0, 1])
def test_an_open_revision_is_pruned_when_it_is_closed(lab, keep):
    """The import or a later stop destroys an old generation."""
    source = lab.private("source", b"new")
    volume = lab.private(content=b"old", revisions_to_keep=keep)
    probe = open_device(volume.path, os.O_RDONLY)
    if keep:
        lab.run(volume.import_volume(source))
        lab.start(volume)
        write(volume.path, b"newer")
    threading.Timer(2.5, probe.close).start()
    if keep:
        lab.stop(volume)
    else:
        lab.run(volume.import_volume(source))
    assert probe.closed
    assert len(lab.datasets("volume")) == 2


def test_generation_is_destroyed_with_the_last_clone_that_needs_it(lab):
    source = lab.private("source", b"new")
    volume = lab.private(content=b"one", revisions_to_keep=1)
    lab.session(volume, b"two")
    first = volume.dataset
    sh("zfs", "snapshot", f"{first}@admin")
    lab.run(volume.revert())
    sh("zfs", "destroy", f"{first}@admin")
    for content in (b"three", b"four"):
        lab.session(volume, content)
    # it has no revision now, and only the current generation is its clone
    assert first.partition("/")[2].partition("/")[2] not in lab.datasets()
    assert lab.content(volume) == b"four"
    lab.run(volume.import_volume(source))
    lab.session(volume, b"five")
    assert len(lab.datasets("volume")) == 2
    assert lab.content(volume) == b"five"


def test_remove_frees_blocks_that_no_clone_needs(lab):
    source = lab.private("source", b"data", size=8 * MIB)
    clone, second = lab.private("clone"), lab.private("second")
    lab.run(clone.import_volume(source))
    lab.run(second.import_volume(source))
    lab.session(source, os.urandom(4 * MIB))

    def used():
        for _ in range(40):
            sh("zpool", "sync")
            size = int(sh("zfs", "get", "-Hpo", "value", "used", lab.container))
            if size < MIB:
                break
            time.sleep(0.25)
        return size

    # udev may open the device at this time
    probe = open_device(source.path, os.O_RDONLY)
    threading.Timer(0.5, probe.close).start()
    lab.run(source.remove())
    assert probe.closed
    assert used() < MIB
    assert lab.content(clone, 4) == b"data"


@pytest.mark.parametrize("how", ["discard", "sweep"])
def test_removed_source_is_kept_until_one_clone_of_another_pool_is_left(
    lab, make_lab, how
):
    source = lab.private("source", b"data")
    other = make_lab()
    target = other.private("target")
    generations = target.generations
    made = []
    for _ in range(2):
        state = other.run(generations.state(StateQuery(counted=True)))
        made.append(
            other.run(generations.clone(source.committed, state, lasting=True))
        )
    lab.run(source.remove())
    assert lab.datasets("volume") == ["vm/source/private"]
    store, (_, clone) = other.pool.store, made[0]
    if how == "discard":
        other.run(store.discard(clone))
    else:
        store.unreserve(clone)
        assert other.sweep_until(lambda: not lab.datasets("volume"))
    assert lab.datasets() == ["vm"]
    assert f"vm/target/private.{made[1][0]}" in other.datasets("volume")


def test_foreign_datasets_in_the_qubes_root_are_kept(lab, tmp_path):
    qubes_root = lab.pool.qubes_root
    (tmp_path / "mnt").mkdir()
    mine = f"mountpoint={tmp_path / 'mnt'}"
    sh("zfs", "create", "-o", mine, f"{qubes_root}/files")
    (tmp_path / "mnt" / "file").write_bytes(os.urandom(4096))
    sh("zfs", "unmount", f"{qubes_root}/files")
    # with a mount point of its own, the driver would refuse the pool
    sh("zfs", "inherit", "mountpoint", f"{qubes_root}/files")
    sh("zfs", "create", "-s", "-V", "1M", f"{qubes_root}/disk")
    sh("zfs", "create", "-u", "-o", "canmount=off", f"{qubes_root}/ours")
    # the machine stopped before canmount was set
    sh("zfs", "create", "-u", f"{qubes_root}/begun")
    lab.restart()
    lab.run(lab.pool.store.first_use())
    assert sorted(lab.datasets()) == ["vm", "vm/disk", "vm/files"]
    # remove a qube with the name of the dataset
    lab.run(lab.private("files").remove())
    assert "vm/files" in lab.datasets()
