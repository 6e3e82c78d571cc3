# SPDX-License-Identifier: BSD-2-Clause
"""A pool that was copied to another zpool, and a clock that is set back."""

import contextlib
import subprocess
import time
from pathlib import Path

import pytest

from .dom0 import MIB, datasets, export, read, record, until, zfs

DAY = 86400


@pytest.fixture
def zpools(tmp_path):
    """Create two zpools; the second one replaces the first."""
    for name in ("here", "there"):
        disk = tmp_path / name
        with open(disk, "wb") as file:
            file.truncate(512 * MIB)
        zfs("zpool", "create", "-m", "none", name, str(disk))
    yield tmp_path
    for name in ("here", "there"):
        subprocess.run(["zpool", "destroy", "-f", name], check=False)


def replace_zpool(folder: Path):
    """Give the zpool "there" the name and GUID of "here"."""
    (guid,) = zfs("zpool", "get", "-H", "-o", "value", "guid", "here")
    zfs("zpool", "reguid", "here")
    export("here")
    export("there")
    zfs("zpool", "import", "-N", "-d", str(folder / "there"), "there", "here")
    zfs("zpool", "reguid", "-g", guid, "here")


def test_a_pool_works_after_a_copy_to_another_zpool(dom0, plain, zpools):
    dom0.run("qvm-pool", "add", "-o", "container=here/q", "moved", "zfs_zvol")
    dom0.run(
        "qvm-create", "-P", "moved", "-l", "red", "-C", "StandaloneVM", "w6"
    )
    for content in (b"mine", b"more"):
        dom0.session("w6", content)
    before = dom0.revisions("w6:private")
    zfs("zfs", "snapshot", "-r", "here/q@move")
    copy = "zfs send -R here/q@move | zfs receive -u there/q"
    subprocess.run(copy, shell=True, check=True)
    zfs("zfs", "destroy", "-r", "there/q@move")
    replace_zpool(zpools)

    dom0.run("qvm-start", "w6")
    assert read("w6", "xvdb", 4) == b"more"
    dom0.shutdown("w6")
    dom0.lists("w6:private", before)
    dom0.run("qvm-volume", "revert", "w6:private")
    dom0.run("qvm-start", "w6")
    assert read("w6", "xvdb", 4) == b"mine"
    dom0.shutdown("w6")
    dom0.run("qvm-remove", "-f", "w6")
    until(lambda: datasets("here/q") == ["here/q", "here/q/vm"], "w6 is gone")
    dom0.run("qvm-pool", "remove", "moved")
    dom0.run("qvm-pool", "add", "-o", "container=here/q", "moved", "zfs_zvol")
    dom0.run("qvm-pool", "remove", "moved")


@contextlib.contextmanager
def yesterday():
    subprocess.run(["date", "-s", f"@{int(time.time()) - DAY}"], check=True)
    try:
        yield
    finally:
        subprocess.run(["date", "-s", f"@{int(time.time()) + DAY}"], check=True)


def test_revisions_stay_in_order_when_the_clock_goes_back(dom0, plain):
    dom0.run("qvm-create", "-P", "plain", "-l", "red", "-t", "tmpl", "w5")

    def session(number):
        dom0.session("w5", b"session %d" % number)

    for number in (1, 2):
        session(number)
    with yesterday():
        for number in (3, 4):
            session(number)
        listed = dom0.revisions("w5:private")
        dom0.run("qvm-volume", "revert", "w5:private")
        dom0.run("qvm-start", "w5")
        data = read("w5", "xvdb", 9)
        dom0.shutdown("w5")
    record(f"listed {listed}; reverted to {data!r}")
    dom0.run("qvm-remove", "-f", "w5")
    assert data == b"session 3" and listed == sorted(listed)
