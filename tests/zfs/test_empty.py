# SPDX-License-Identifier: BSD-2-Clause
"""Removing a qube leaves no dataset and destroys no file of a user."""

import os

import pytest

from ..support.lab import Lab
from ..support.zpools import another_zpool, sh


@pytest.fixture
def old():
    """Create a zpool without features, as old versions of ZFS did."""
    with another_zpool("old", "-d") as name:
        yield Lab(name)


def test_remove_leaves_no_dataset_after_a_zpool_upgrade(old):
    before = old.private("before")
    sh("zpool", "upgrade", "old")
    after = old.private("after")
    sizes = sh(
        *("zfs", "get", "-Hpo", "value", "logicalreferenced"),
        *(f"{old.pool.qubes_root}/{name}" for name in ("before", "after")),
    ).split()
    assert sizes[0] != sizes[1], "the upgrade changes nothing here"
    for volume in (before, after):
        old.run(volume.remove())
    assert old.datasets() == ["vm"]


@pytest.mark.parametrize(
    "how", ["mounted", "was mounted", "has a snapshot", "a qube's was mounted"]
)
def test_filesystem_that_may_have_content_is_kept(lab, tmp_path, how):
    volume = lab.private()
    name = "theirs"
    if how == "a qube's was mounted":
        name = volume.vid.partition("/")[0]
    dataset = f"{lab.pool.qubes_root}/{name}"
    if name == "theirs":
        sh("zfs", "create", dataset)
    if how == "has a snapshot":
        sh("zfs", "snapshot", f"{dataset}@theirs")
    else:
        sh("zfs", "set", f"mountpoint={tmp_path}", dataset)
        with open(tmp_path / "file", "wb") as file:
            file.write(bytes(range(256)) * 1024)
        if how != "mounted":
            sh("zfs", "inherit", "mountpoint", dataset)
    lab.run(lab.pool.store.collect_garbage())
    lab.run(volume.remove())
    assert f"vm/{name}" in lab.datasets()
    sh("zfs", "destroy", "-r", dataset)


def test_small_file_is_kept_with_canmount_off(lab, tmp_path):
    """An administrator's filesystem is not the empty dataset of a qube."""
    dataset = f"{lab.pool.qubes_root}/theirs"
    sh("zfs", "create", "-o", f"mountpoint={tmp_path}", dataset)
    (tmp_path / "file").write_bytes(os.urandom(4096))
    sh("zfs", "unmount", dataset)
    # the driver would refuse a pool with this mount point
    sh("zfs", "inherit", "mountpoint", dataset)
    sh("zfs", "set", "canmount=off", dataset)
    lab.run(lab.pool.store.collect_garbage())
    # remove a qube of the same name
    lab.run(lab.private("theirs").remove())
    assert "vm/theirs" in lab.datasets()
    sh("zfs", "destroy", "-r", dataset)


def test_qube_dataset_with_canmount_off_is_marked(old):
    """The driver sets canmount=off where a mount point would be inherited."""
    sh("zfs", "set", "mountpoint=/nowhere", old.pool.qubes_root)
    volume = old.private()
    qube = volume.dataset.rpartition("/")[0]
    asked = "canmount,qubes-storage-zfs:created"
    values = sh("zfs", "get", "-Ho", "value", asked, qube).split()
    assert values == ["off", "yes"]
    sh("zpool", "upgrade", "old")
    # its dataset has another size than the qubes root
    late = old.private("late")
    for each in (volume, late):
        old.run(each.remove())
    assert old.datasets() == ["vm"]
