# SPDX-License-Identifier: BSD-2-Clause
"""A pool is missing or not usable: qubesd runs, and reports the reason."""

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .dom0 import MIB, STANDALONE, STORE, datasets, export, read, write, zfs


@pytest.fixture(scope="module")
def far(dom0, plain):
    """Create a qube in a pool on a zpool of its own, which a test can export."""
    zfs("zpool", "create", "-m", "none", "usb", "/dev/vdd")
    option = "container=usb/qubes"
    dom0.run("qvm-pool", "add", "-o", option, "usb", "zfs_zvol")
    dom0.run(*STANDALONE, "usb", "far")
    dom0.import_file("far:root", b"far".ljust(MIB, b"\0"))
    dom0.run(*STANDALONE, plain, "near")
    files = ("-o", "dir_path=/var/lib/files", "-o", "setup_check=False")
    dom0.run("qvm-pool", "add", *files, "files", "file-reflink")
    dom0.run(*STANDALONE, "files", "file")
    yield "far"
    for qube in ("far", "near", "file"):
        dom0.run("qvm-remove", "-f", qube)
    dom0.run("qvm-pool", "remove", "usb", "files")
    assert datasets("usb") == ["usb", "usb/qubes", "usb/qubes/vm"]
    zfs("zpool", "destroy", "usb")


def recorded_volumes():
    """Return the pools and volumes that qubes.xml records, sorted."""
    elements = [
        (element.tag, sorted(element.items()))
        for element in ElementTree.parse(STORE).iter()
        if element.tag in ("pool", "volume")
    ]
    said = [attribute for _, element in elements for attribute in element]
    assert {("pool", "usb"), ("container", "usb/qubes")} <= set(said)
    return sorted(elements)


def check_listings(dom0):
    """Check that all pools and volumes are listed, missing or not."""
    pools = dom0.run("qvm-pool", "list").splitlines()
    for line in ("files file-reflink", "plain zfs_zvol", "usb zfs_zvol"):
        assert line in pools
    dom0.run("qvm-pool", "info", "usb", says="driver zfs_zvol")
    dom0.run("qvm-ls", says=("far", "near", "file"))
    dom0.run("qvm-volume", "list", says=("usb:far/root", "plain:near/root"))
    dom0.run("qvm-volume", "info", "far:root", says="size 1048576")


def test_qubesd_starts_without_the_zpool(dom0, far):
    dom0.session(far, b"before")
    before = recorded_volumes()
    dom0.stop()
    export("usb")
    dom0.start()
    check_listings(dom0)
    dom0.refuses_start(
        far, ("zpool usb is not imported", "sudo qvm-zfs attach")
    )
    dom0.import_file(
        "far:private", b"x" * MIB, status=1, says="is not imported"
    )
    revert = ("qvm-volume", "revert", "far:root", "r1")
    dom0.run(*revert, status=1)
    create = dom0.run(*STANDALONE, "usb", "another", status=1)
    assert "zpool usb is not imported" in create
    dom0.cycle("near")
    dom0.cycle("file")
    # qubesd saves qubes.xml now, and when it stops
    dom0.run("qvm-features", "near", "some.feature", "1")
    assert recorded_volumes() == before
    dom0.stop()
    assert recorded_volumes() == before
    dom0.start()
    zfs("zpool", "import", "usb")
    # qubesd needs no restart
    dom0.run("qvm-start", far)
    assert read(far, "xvda", 3) == b"far"
    assert read(far, "xvdb", 6) == b"before"
    write(far, "xvdb", b"after!")
    dom0.shutdown(far)
    assert len(dom0.revisions("far:private")) == 2
    assert recorded_volumes() == before


def test_a_zpool_can_disappear_and_return_while_qubesd_runs(dom0, far):
    export("usb")
    check_listings(dom0)
    dom0.refuses_start(far, "zpool usb is not imported")
    dom0.cycle("near")
    zfs("zpool", "import", "usb")
    dom0.run("qvm-start", far)
    assert read(far, "xvdb", 6) == b"after!"
    dom0.shutdown(far)


def test_a_start_refuses_a_renamed_container(dom0, far):
    zfs("zfs", "rename", "usb/qubes", "usb/moved")
    check_listings(dom0)
    dom0.refuses_start(
        far, ("usb/qubes does not exist", "if it was renamed, rename it back")
    )
    dom0.cycle("near")
    zfs("zfs", "rename", "usb/moved", "usb/qubes")
    dom0.cycle(far)


def test_a_start_refuses_a_container_of_another_pool(dom0, far):
    mark = "qubes-storage-zfs:pool"
    zfs("zfs", "set", f"{mark}=theirs", "usb/qubes")
    check_listings(dom0)
    dom0.refuses_start(far, ("belongs to the pool theirs", f"inherit {mark}"))
    zfs("zfs", "set", f"{mark}=usb", "usb/qubes")
    dom0.cycle(far)


def test_a_start_reports_a_missing_volume(dom0, far):
    dom0.run(*STANDALONE, "usb", "lost")
    zfs("zfs", "destroy", "-r", "usb/qubes/vm/lost/private")
    check_listings(dom0)
    dom0.refuses_start(
        "lost", ("the volume is missing on disk", "lost/private")
    )
    dom0.cycle(far)
    dom0.run("qvm-remove", "-f", "lost")
    assert not any("lost" in name for name in datasets("usb"))


def test_qubesd_starts_without_pyzfs(dom0, far, tmp_path):
    hidden = "raise ImportError('No module named libzfs_core')\n"
    Path(tmp_path, "libzfs_core.py").write_text(hidden, "ascii")
    os.chmod(tmp_path, 0o755)
    before = recorded_volumes()
    dom0.stop()
    dom0.start(PYTHONPATH=str(tmp_path))
    check_listings(dom0)
    missing = ("python3-pyzfs is not installed", "modprobe zfs")
    dom0.refuses_start(far, missing)
    dom0.refuses_start("near", missing)
    add = ("qvm-pool", "add", "-o", "container=tank/x", "new", "zfs_zvol")
    dom0.run(*add, status=1, says=missing)
    dom0.cycle("file")
    dom0.run("qvm-features", "file", "some.feature", "1")
    assert recorded_volumes() == before
    dom0.stop()
    assert recorded_volumes() == before
    dom0.start()
    dom0.cycle(far)


def test_qubesd_starts_without_the_zfs_module(dom0, far):
    before = recorded_volumes()
    dom0.stop()
    export("usb")
    export("tank")
    zfs("modprobe", "-r", "zfs")
    try:
        dom0.start()
        check_listings(dom0)
        dom0.refuses_start(far, ("zfs kernel module", "modprobe zfs"))
        dom0.cycle("file")
        dom0.run("qvm-features", "file", "some.feature", "2")
        assert recorded_volumes() == before
    finally:
        zfs("modprobe", "zfs", "zfs_arc_max=268435456")
        zfs("zpool", "import", "-a")
    dom0.cycle(far)
    dom0.cycle("near")
    assert recorded_volumes() == before
