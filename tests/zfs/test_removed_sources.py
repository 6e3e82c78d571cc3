# SPDX-License-Identifier: BSD-2-Clause
"""Removed volumes that have clones.

A removed volume with one clone is destroyed. Its states never become revisions
of a clone.
"""

import os
import time

import pytest

from qubes_storage_zfs.store import programs
from qubes_storage_zfs.zfs import lzc, zcp

from ..crash.gate import Door, Gate, Stopped
from ..support.lab import EncryptedLab
from ..support.tool import qvm_zfs
from ..support.zpools import MIB, sh, write


def used(lab):
    """Return the used bytes of the container, once ZFS has freed all blocks."""
    last = None
    for _ in range(20):
        sh("zpool", "sync", lab.pool.zpool)
        now = int(sh("zfs", "get", "-Hpo", "value", "used", lab.container))
        if now == last:
            break
        last = now
        time.sleep(0.2)
    return now


def removed_usage(lab):
    lab.run(lab.pool.space.count())
    return lab.pool.space.of_removed()


def volumes(lab):
    start = lab.pool.qubes_root.removeprefix(lab.container + "/") + "/"
    return [x.removeprefix(start) for x in lab.datasets("volume")]


def cloned(lab, source, qube, **config):
    """Clone *source* as qvm-clone does."""
    config.setdefault("revisions_to_keep", 3)
    volume = lab.private(qube, size=8 * MIB, **config)
    lab.run(volume.import_volume(source))
    return volume


def big(lab, qube="f1", mib=4):
    return lab.private(qube, os.urandom(mib * MIB), size=8 * MIB)


def test_repeated_clone_and_remove_takes_no_space(lab):
    """Create a clone, overwrite all of it and remove its source."""
    source = big(lab)
    before = used(lab)
    for number in range(2, 5):
        clone = cloned(lab, source, f"f{number}", revisions_to_keep=0)
        # the clone runs; its revisions have the names of the source's
        lab.start(clone)
        write(clone.path, os.urandom(4 * MIB))
        lab.run(source.remove())
        assert volumes(lab) == [f"f{number}/private.1"]
        lab.stop(clone)
        source = clone
    assert used(lab) < before + MIB
    assert removed_usage(lab) == 0
    assert len(lab.datasets("snapshot")) == 1


def test_states_of_a_removed_source_are_no_revisions_of_its_clone(lab):
    source = big(lab, mib=1)
    for content in b"a", b"b", b"c":
        lab.session(source, content)
    clone = cloned(lab, source, "clone")
    lab.session(clone, b"mine")
    before = lab.datasets("snapshot")
    lab.run(source.remove())
    assert lab.datasets("snapshot") == [x for x in before if "clone" in x]
    assert list(clone.revisions) == ["r2"]
    lab.session(clone, b"more")
    lab.run(clone.revert("r2"))
    assert lab.content(clone, 1) == b"c"


def test_remove_destroys_older_generations_of_a_source(lab):
    """Each generation is the origin of the next, and the last of the clone."""
    source = lab.private("source", b"one", revisions_to_keep=5)
    first = cloned(lab, source, "first")
    lab.session(source, b"two")
    sh("zfs", "snapshot", f"{source.dataset}@admin")
    lab.run(source.revert())
    sh("zfs", "destroy", f"{source.dataset.replace('.1', '')}@admin")
    second = cloned(lab, source, "second")
    lab.run(first.remove())
    lab.run(source.remove())
    assert volumes(lab) == ["second/private.1"]
    assert lab.content(second, 3) == b"one"


def test_removed_source_is_kept_until_one_clone_is_left(lab):
    source = big(lab)
    first, second = cloned(lab, source, "a"), cloned(lab, source, "b")
    lab.run(source.remove())
    assert volumes(lab) == ["a/private.1", "b/private.1", "f1/private"]
    # its usage is reported, but not as usage of revisions
    assert removed_usage(lab) > 3.9 * MIB
    assert lab.pool.space.of_revisions() < MIB
    details = lab.pool.usage_details
    assert details["removed_usage"] > 3.9 * MIB
    _, said, _ = qvm_zfs("status", lab.name)
    assert f"{lab.name}: 4 MiB of removed volumes are still allocated" in said
    lab.run(first.remove())
    assert volumes(lab) == ["b/private.1"]
    assert removed_usage(lab) == 0
    assert list(second.revisions) == []


def test_pruned_generation_with_one_clone_is_destroyed(lab):
    """The volume is not removed; its last revision is pruned."""
    source = big(lab)
    clone = cloned(lab, source, "clone")
    other = lab.private("other", b"new")
    source.revisions_to_keep = 0
    lab.run(source.import_volume(other))
    assert "f1/private" not in volumes(lab)
    assert len(lab.content(clone, 4 * MIB)) == 4 * MIB


def foreign(lab, source, kind):
    """Create a foreign reference; return the command that removes it."""
    snapshot = f"{source.dataset}@r2"
    if kind == "clone":
        name = f"{lab.container}/foreign"
        sh("zfs", "clone", snapshot, name)
        return "zfs", "destroy", name
    if kind == "hold":
        sh("zfs", "hold", "me", snapshot)
        return "zfs", "release", "me"
    sh("zfs", "snapshot", f"{source.dataset}@admin")
    return "zfs", "destroy", f"{source.dataset}@admin"


@pytest.mark.parametrize("kind", ["clone", "hold", "snapshot"])
def test_removed_source_in_foreign_use_is_kept(lab, kind):
    source = big(lab, mib=1)
    clone = cloned(lab, source, "clone")
    dataset, end = source.dataset, foreign(lab, source, kind)
    lab.run(source.remove())
    left = lab.datasets("snapshot")
    origin = sh("zfs", "get", "-Ho", "value", "origin", clone.dataset)
    assert origin == f"{dataset}@r2" and removed_usage(lab) > 0.9 * MIB
    lab.run(lab.pool.store.collect_garbage())
    assert lab.datasets("snapshot") == left
    sh(*end, *([f"{dataset}@r2"] if kind == "hold" else []))
    assert lab.sweep_until(lambda: volumes(lab) == ["clone/private.1"])
    assert list(clone.revisions) == []


def test_removed_source_with_a_foreign_clone_alone_is_kept(lab):
    source = big(lab, mib=1)
    end = foreign(lab, source, "clone")
    lab.run(source.remove())
    assert "f1/private" in volumes(lab) and removed_usage(lab) > 0.9 * MIB
    sh(*end)
    lab.run(lab.pool.store.collect_garbage())
    assert lab.sweep_until(lambda: lab.datasets() == ["vm"])


def test_removed_source_is_kept_if_the_quota_of_its_clone_is_too_small(lab):
    source = big(lab)
    clone = cloned(lab, source, "clone", revisions_to_keep=0)
    lab.session(clone, os.urandom(4 * MIB))
    quota = f"{lab.pool.qubes_root}/clone"
    sh("zfs", "set", f"quota={6 * MIB}", quota)
    lab.run(source.remove())
    assert "f1/private" in volumes(lab)
    assert removed_usage(lab) > 3.9 * MIB
    lab.session(clone, b"works")
    sh("zfs", "set", "quota=none", quota)
    # the next qubesd tries again
    lab.restart()
    lab.run(lab.pool.first_use())
    assert lab.sweep_until(lambda: volumes(lab) == ["clone/private.1"])
    assert lab.content(clone, 5) == b"works"


def test_removal_killed_after_the_promotion_is_completed(lab, monkeypatch):
    """Kill qubesd after the promotion; tests/crash kills it elsewhere."""
    source = big(lab, mib=1)
    clone = cloned(lab, source, "clone")
    lab.session(clone, b"own")
    whole = zcp.LIBRARY["promotion"]
    cut = whole.replace(b"return destroy_whole(ds)", b"return 16")
    assert cut != whole
    with Door() as door:
        gate = door.gates[lab.container] = Gate()
        with monkeypatch.context() as patch:
            patch.setitem(zcp.LIBRARY, "promotion", cut)
            zcp.whole_text.cache_clear()
            gate.open(1)
            with pytest.raises(Stopped):
                lab.run(source.remove())
        zcp.whole_text.cache_clear()
        gate.open()
    lab.restart()
    clone = lab.again(clone)
    listed = sh("zfs", "list", "-Ho", "name", "-t", "snapshot", clone.dataset)
    names = [item.partition("@")[2] for item in listed.split()]
    assert sorted(names) == ["g1", "r2", "r3"]
    assert list(clone.revisions) == ["r2"]
    assert "r2" in clone.view.committed_ids()
    # qubesd calls stop() for each halted qube at its start
    lab.run(clone.stop())
    assert lab.sweep_until(lambda: volumes(lab) == ["clone/private.1"])
    assert not any("@g" in name for name in lab.datasets("snapshot"))
    lab.session(clone, b"later")
    lab.run(clone.revert())
    assert lab.content(clone, 3) == b"own"


def test_source_is_removed_in_a_locked_pool(zpool):
    """A promotion needs no key."""
    lab = EncryptedLab(zpool)
    source = big(lab)
    cloned(lab, source, "clone")
    lab.run(lzc.unload_key(lab.container))
    lab.run(source.remove())
    assert volumes(lab) == ["clone/private.1"]


def bookmark(dataset, snapshot):
    """Create a bookmark that is newer than all our snapshots."""
    sh("zfs", "snapshot", f"{dataset}@{snapshot}")
    sh("zfs", "bookmark", f"{dataset}@{snapshot}", f"{dataset}#{snapshot}")
    sh("zfs", "destroy", f"{dataset}@{snapshot}")


def bookmarks(lab):
    return lab.datasets("bookmark")


def test_operations_work_with_foreign_bookmarks(lab):
    volume = lab.private(content=b"one", revisions_to_keep=2)
    bookmark(volume.dataset, "x")
    lab.session(volume, b"two")
    bookmark(volume.dataset, "y")
    lab.run(volume.resize(8 * MIB))
    lab.run(volume.revert())
    assert lab.content(volume, 3) == b"two"
    lab.run(volume.revert(list(volume.revisions)[0]))
    bookmark(volume.dataset, "z")
    lab.session(volume, b"three")
    lab.replace(volume, b"four")
    lab.run(volume.export_end(lab.run(volume.export())))
    # bookmarks of kept generations are kept
    assert any(x.endswith("#z") for x in bookmarks(lab))
    lab.run(volume.remove())
    assert lab.datasets() == ["vm"]


@pytest.mark.parametrize("clones", [1, 2])
def test_remove_destroys_bookmarks_of_a_source(lab, clones):
    source = big(lab)
    made = [cloned(lab, source, f"c{number}") for number in range(clones)]
    bookmark(made[0].dataset, "x")
    for name in "x", "y":
        bookmark(source.dataset, name)
    lab.session(source, os.urandom(4 * MIB))
    bookmark(source.dataset, "late")
    before = used(lab)
    lab.run(source.remove())
    assert [x.rpartition("#")[2] for x in bookmarks(lab)] == ["x"]
    assert ("f1/private" in volumes(lab)) == (clones == 2)
    assert before - used(lab) > 3.5 * MIB


def test_reset_destroys_bookmarks(lab):
    volume = lab.volatile("app")
    lab.start(volume)
    bookmark(volume.dataset, "late")
    dataset = volume.dataset
    write(volume.path, b"secret")
    lab.stop(volume)
    lab.start(volume)
    # the zvol was rolled back and not replaced
    assert volume.dataset == dataset and bookmarks(lab) == []
    lab.stop(volume)


def test_retried_removal_keeps_a_new_volume(lab):
    """The driver retries while a process keeps a zvol open."""
    volume = lab.private(content=b"new")
    lab.run(
        programs.remove(
            programs.Volume(volume.where, volume.store.thresholds.limits),
            busy=(),
            only_disposable=False,
            retry=True,
        )
    )
    assert lab.content(volume) == b"new"
    lab.run(volume.remove())
    assert lab.datasets() == ["vm"]
