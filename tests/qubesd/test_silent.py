# SPDX-License-Identifier: BSD-2-Clause
"""A disk hangs or is read-only: qubesd continues, and reports the reason."""

import time
from pathlib import Path

import pytest

from .dom0 import STANDALONE, datasets, export, read, zfs

#: seconds that a command here takes at most if it does not wait for a disk
PROMPT = 60


@pytest.fixture(scope="module")
def slow(dom0, plain):
    """Create a qube with two revisions in a pool whose disk can hang."""
    zfs("modprobe", "dm_mod")
    table = f"0 {512 << 11} linear /dev/vde 0"
    zfs("dmsetup", "create", "slow", "--table", table)
    zfs("zpool", "create", "-m", "none", "slow", "/dev/mapper/slow")
    dom0.run("qvm-pool", "add", "-o", "container=slow/q", "slow", "zfs_zvol")
    dom0.run(*STANDALONE, "slow", "hung")
    dom0.run(*STANDALONE, plain, "near")
    for content in (b"one", b"two"):
        dom0.session("hung", content)
    assert dom0.revisions("hung:private") == ["r1", "r2"]
    yield "hung"
    for qube in ("hung", "near"):
        dom0.run("qvm-remove", "-f", qube)
    dom0.run("qvm-pool", "remove", "slow")
    assert datasets("slow") == ["slow", "slow/q", "slow/q/vm"]
    zfs("zpool", "destroy", "slow")
    zfs("udevadm", "settle")
    zfs("dmsetup", "remove", "--retry", "slow")


def import_again(*options):
    export("slow")
    zfs("zpool", "import", "-N", *options, "-d", "/dev/mapper", "slow")
    if not options:
        zfs("zpool", "sync", "slow")
    Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")


def check_reads(dom0):
    """Check that qubesd answers all queries soon; return one answer."""
    begin = time.monotonic()
    dom0.run("qvm-ls", says=("hung", "near"))
    dom0.run("qvm-volume", "list", says=("slow:hung/root", "plain:near/root"))
    dom0.run("qvm-pool", "info", "slow", says="driver zfs_zvol")
    said = dom0.run("qvm-volume", "info", "hung:private")
    assert "(for revert): none" not in said
    assert time.monotonic() - begin < 4 * PROMPT
    return said


def test_a_disk_that_hangs_blocks_no_other_qube(dom0, slow):
    import_again()
    zfs("dmsetup", "suspend", "--noflush", "--nolockfs", "slow")
    try:
        starting = dom0.begin("qvm-start", slow)
        time.sleep(3)
        assert "  r2\n" in check_reads(dom0)
        dom0.cycle("near")
    finally:
        zfs("dmsetup", "resume", "slow")
    dom0.end(starting)
    assert read(slow, "xvdb", 3) == b"two"
    dom0.shutdown(slow)


def test_a_read_only_zpool_is_reported(dom0, slow):
    import_again("-o", "readonly=on")
    try:
        said = check_reads(dom0)
        assert "  r2\n" in said
        why = ("slow is imported read-only", "sudo zpool export slow")
        dom0.refuses_start(slow, why)
        dom0.run("qvm-volume", "revert", "hung:private", status=1, says=why)
        dom0.run("qvm-zfs", "status", says=("read-only", *why))
        # a new qubesd has not read the revisions yet
        dom0.stop()
        dom0.start()
        assert (
            "  unknown:_the_zpool_slow_is_imported_read-only_"
            in check_reads(dom0)
        )
        revert = ("qvm-volume", "revert", "hung:private")
        for revision in ((), ("r1",)):
            dom0.run(*revert, *revision, status=1, says=why)
    finally:
        import_again()
    assert dom0.revisions("hung:private")[:2] == ["r1", "r2"]
    dom0.cycle(slow)
