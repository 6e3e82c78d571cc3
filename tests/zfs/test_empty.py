"""What a removed qube leaves: no dataset, and nobody's files are taken."""

import subprocess
from pathlib import Path

import pytest

from .conftest import MIB, Lab, sh

DISK = Path("/tmp/old.img")


@pytest.fixture
def old():
    """A zpool without features, as an old version of ZFS made it."""
    with open(DISK, "wb") as file:
        file.truncate(256 * MIB)
    sh("zpool", "create", "-d", "-m", "none", "old", str(DISK))
    yield Lab("old")
    subprocess.run(["zpool", "destroy", "-f", "old"], check=False)
    DISK.unlink()


def test_no_dataset_is_left_after_an_upgrade_of_the_zpool(old):
    before = old.private("before")
    sh("zpool", "upgrade", "old")
    after = old.private("after")
    sizes = sh(
        *("zfs", "get", "-Hpo", "value", "logicalreferenced"),
        *(f"{old.pool.home}/{name}" for name in ("before", "after")),
    ).split()
    assert sizes[0] != sizes[1], "the upgrade changes nothing here"
    for volume in (before, after):
        old.run(volume.remove())
    assert old.datasets() == ["vm"]


@pytest.mark.parametrize(
    "how", ["mounted", "was mounted", "has a snapshot", "a qube's was mounted"]
)
def test_what_may_have_content_stays(lab, tmp_path, how):
    volume = lab.private()
    name = "theirs"
    if how == "a qube's was mounted":
        name = volume.vid.partition("/")[0]
    dataset = f"{lab.pool.home}/{name}"
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
    lab.run(lab.pool.store.sweep())
    lab.run(volume.remove())
    assert f"vm/{name}" in lab.datasets()
    sh("zfs", "destroy", "-r", dataset)
