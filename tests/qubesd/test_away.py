"""A pool is not there, or cannot be used: qubesd lives, and says why."""

import os
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .dom0 import MIB, STORE, datasets, read, write, zfs

SHUTDOWN = ("qvm-shutdown", "--wait")
#: a template in its pool of its own would say nothing more
CREATE = ("qvm-create", "-C", "StandaloneVM", "-l", "blue", "-P")


@pytest.fixture(scope="module")
def far(dom0, plain):
    """A qube in a pool of its own zpool, which the test may take away."""
    zfs("zpool", "create", "-m", "none", "usb", "/dev/vdd")
    option = "container=usb/qubes"
    dom0.run("qvm-pool", "add", "-o", option, "usb", "zfs_zvol")
    dom0.run(*CREATE, "usb", "far")
    dom0.give("far:root", b"far".ljust(MIB, b"\0"))
    dom0.run(*CREATE, plain, "near")
    files = ("-o", "dir_path=/var/lib/files", "-o", "setup_check=False")
    dom0.run("qvm-pool", "add", *files, "files", "file-reflink")
    dom0.run(*CREATE, "files", "file")
    yield "far"
    for qube in ("far", "near", "file"):
        dom0.run("qvm-remove", "-f", qube)
    dom0.run("qvm-pool", "remove", "usb", "files")
    assert datasets("usb") == ["usb", "usb/qubes", "usb/qubes/vm"]
    zfs("zpool", "destroy", "usb")


def goes(dom0, qube):
    """It starts and stops."""
    dom0.run("qvm-start", qube)
    dom0.run(*SHUTDOWN, qube)


def export(zpool):
    """Whoever looked at its volumes last may hold one for a moment."""
    for _ in range(30):
        try:
            return zfs("zpool", "export", zpool)
        except AssertionError as exc:
            if "busy" not in str(exc):
                raise
            time.sleep(0.5)
    raise AssertionError(f"{zpool} stays busy")


def kept():
    """What qubes.xml says of pools and volumes, in whatever order."""
    found = [
        (each.tag, sorted(each.items()))
        for each in ElementTree.parse(STORE).iter()
        if each.tag in ("pool", "volume")
    ]
    said = [attribute for _, each in found for attribute in each]
    assert {("pool", "usb"), ("container", "usb/qubes")} <= set(said)
    return sorted(found)


def looks_work(dom0):
    """All pools and volumes are listed, whatever is away."""
    pools = dom0.run("qvm-pool", "list").splitlines()
    for line in ("files file-reflink", "plain zfs_zvol", "usb zfs_zvol"):
        assert line in pools
    dom0.run("qvm-pool", "info", "usb", says="driver zfs_zvol")
    dom0.run("qvm-ls", says=("far", "near", "file"))
    dom0.run("qvm-volume", "list", says=("usb:far/root", "plain:near/root"))
    dom0.run("qvm-volume", "info", "far:root", says="size 1048576")


def refused(dom0, qube, says):
    said = dom0.run("qvm-start", qube, status=1, says=says)
    assert "Got empty response" not in said
    assert len(said.strip().splitlines()) == 1
    dom0.run("qvm-ls", "--fields=STATE", qube, says="Halted")


def test_qubesd_starts_without_the_zpool(dom0, far):
    dom0.run("qvm-start", far)
    write(far, "xvdb", b"before")
    dom0.run(*SHUTDOWN, far)
    before = kept()
    dom0.stop()
    export("usb")
    dom0.start()
    looks_work(dom0)
    refused(dom0, far, ("zpool usb is not imported", "sudo qvm-zfs attach"))
    dom0.give("far:private", b"x" * MIB, status=1, says="is not imported")
    revert = ("qvm-volume", "revert", "far:root", "r1")
    dom0.run(*revert, status=1)
    create = dom0.run(*CREATE, "usb", "another", status=1)
    assert "zpool usb is not imported" in create
    goes(dom0, "near")
    goes(dom0, "file")
    # saved meanwhile, and whenever qubesd ends
    dom0.run("qvm-features", "near", "some.feature", "1")
    assert kept() == before
    dom0.stop()
    assert kept() == before
    dom0.start()
    zfs("zpool", "import", "usb")
    # no restart is needed
    dom0.run("qvm-start", far)
    assert read(far, "xvda", 3) == b"far"
    assert read(far, "xvdb", 6) == b"before"
    write(far, "xvdb", b"after!")
    dom0.run(*SHUTDOWN, far)
    assert len(dom0.revisions("far:private")) == 2
    assert kept() == before


def test_the_zpool_goes_and_comes_while_qubesd_runs(dom0, far):
    export("usb")
    looks_work(dom0)
    refused(dom0, far, "zpool usb is not imported")
    goes(dom0, "near")
    zfs("zpool", "import", "usb")
    dom0.run("qvm-start", far)
    assert read(far, "xvdb", 6) == b"after!"
    dom0.run(*SHUTDOWN, far)


def test_the_container_is_renamed_by_hand(dom0, far):
    zfs("zfs", "rename", "usb/qubes", "usb/moved")
    looks_work(dom0)
    refused(dom0, far, ("usb/qubes does not exist", "renamed or destroyed"))
    goes(dom0, "near")
    zfs("zfs", "rename", "usb/moved", "usb/qubes")
    goes(dom0, far)


def test_a_container_that_is_another_pools(dom0, far):
    mark = "qubes-storage-zfs:pool"
    zfs("zfs", "set", f"{mark}=theirs", "usb/qubes")
    looks_work(dom0)
    refused(dom0, far, ("belongs to the pool theirs", f"inherit {mark}"))
    zfs("zfs", "set", f"{mark}=usb", "usb/qubes")
    goes(dom0, far)


def test_a_volume_is_destroyed_by_hand(dom0, far):
    dom0.run(*CREATE, "usb", "lost")
    zfs("zfs", "destroy", "-r", "usb/qubes/vm/lost/private")
    looks_work(dom0)
    refused(dom0, "lost", ("the volume is missing on disk", "lost/private"))
    goes(dom0, far)
    dom0.run("qvm-remove", "-f", "lost")
    assert not any("lost" in each for each in datasets("usb"))


def test_qubesd_starts_without_pyzfs(dom0, far, tmp_path):
    hidden = "raise ImportError('No module named libzfs_core')\n"
    Path(tmp_path, "libzfs_core.py").write_text(hidden, "ascii")
    os.chmod(tmp_path, 0o755)
    before = kept()
    dom0.stop()
    dom0.start(PYTHONPATH=str(tmp_path))
    looks_work(dom0)
    missing = ("python3-pyzfs is missing", "modprobe zfs")
    refused(dom0, far, missing)
    refused(dom0, "near", missing)
    add = ("qvm-pool", "add", "-o", "container=tank/x", "new", "zfs_zvol")
    dom0.run(*add, status=1, says=missing)
    goes(dom0, "file")
    dom0.run("qvm-features", "file", "some.feature", "1")
    assert kept() == before
    dom0.stop()
    assert kept() == before
    dom0.start()
    goes(dom0, far)


def test_qubesd_starts_without_the_zfs_module(dom0, far):
    before = kept()
    dom0.stop()
    export("usb")
    export("tank")
    zfs("modprobe", "-r", "zfs")
    try:
        dom0.start()
        looks_work(dom0)
        refused(dom0, far, ("zfs kernel module", "modprobe zfs"))
        goes(dom0, "file")
        dom0.run("qvm-features", "file", "some.feature", "2")
        assert kept() == before
    finally:
        zfs("modprobe", "zfs", "zfs_arc_max=268435456")
        zfs("zpool", "import", "-a")
    goes(dom0, far)
    goes(dom0, "near")
    assert kept() == before
