# SPDX-License-Identifier: BSD-2-Clause
"""A disk that a user connects and disconnects."""

import contextlib
import subprocess
import time
from pathlib import Path

from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import importexport

from .lab import EncryptedLab, configure
from .tool import qvm_zfs
from .zpools import export_zpool, sh

HOSTID = Path("/sys/module/spl/parameters/spl_hostid")
INHIBIT = Path("/sys/module/zfs/parameters/zvol_inhibit_dev")
PART = 512000  # sectors of 512 bytes


class Disks:
    """Parts of a disk that tests connect and disconnect."""

    def __init__(self):
        self.here = set()

    def connect(self, *names):
        """Connect parts, "a" or "b", which keep their content; return nodes."""
        for name in names:
            disk, start = {
                "a": ("/dev/vdd", 2048),
                "b": ("/dev/vdd", 2048 + PART),
            }[name]
            table = f"0 {PART} linear {disk} {start}"
            sh("dmsetup", "create", f"stick-{name}", "--table", table)
            self.here.add(name)
        sh("udevadm", "settle")
        return [f"/dev/mapper/stick-{name}" for name in names]

    def take_away(self, *names):
        for name in names:
            sh("udevadm", "settle")
            sh("dmsetup", "remove", "--retry", f"stick-{name}")
            self.here.discard(name)

    def zpool(self, *names, kind=()):
        sh(
            "zpool",
            "create",
            "-m",
            "none",
            "stick",
            *kind,
            *self.connect(*names),
        )


@contextlib.contextmanager
def parts_of_a_disk():
    """Return Disks; destroy the zpool stick and delete qubes.xml at the end."""
    parts = Disks()
    try:
        yield parts
    finally:
        subprocess.run(["zpool", "destroy", "-f", "stick"], check=False)
        parts.take_away(*list(parts.here))
        sh("blkdiscard", "-q", "-f", "-z", "/dev/vdd")
        common.QUBES_XML.unlink(missing_ok=True)


def make(kind, disks):
    """Create a pool on the zpool stick, and a qubes.xml with the pool."""
    options = {"asked": True} if kind is EncryptedLab else {}
    lab = kind("stick", **options)
    configure(lab.pool.config)
    return lab


@contextlib.contextmanager
def another_machines(disks):
    """Copy the disk while another machine has the zpool stick imported."""
    before = HOSTID.read_text()
    try:
        export_zpool("stick")
        HOSTID.write_text("0x11111111")
        sh("zpool", "import", "-N", "-d", "/dev/mapper", "stick")
        sh("zpool", "sync", "stick")
        (copy,) = disks.connect("b")
        sh("dd", "if=/dev/mapper/stick-a", f"of={copy}", "bs=1M")
        export_zpool("stick")
        disks.take_away("a")
        HOSTID.write_text("0x22222222")
        yield
    finally:
        HOSTID.write_text(before)


def prop(name):
    return sh("zpool", "get", "-Ho", "value", name, "stick")


def guid():
    return prop("guid")


@contextlib.contextmanager
def no_node_appears():
    """Check that no node of a zvol appears, even for a moment."""
    log = Path("/tmp/uevents")
    with open(log, "wb") as file:
        command = ["udevadm", "monitor", "--kernel", "-s", "block"]
        with subprocess.Popen(command, stdout=file) as monitor:
            try:
                time.sleep(1)
                yield
                time.sleep(1)
            finally:
                monitor.kill()
    assert "/zd" not in log.read_text()


def change(lab, *commands):
    """Change the zpool stick, as an attacker with the disk can.

    The zpool is imported without nodes, because a change of volmode with an
    immediate export can hang the kernel (see importexport.create_nodes()).
    """
    if importexport.guid("stick") is not None:
        code, _, why = qvm_zfs("detach", lab.name)
        assert code == 0, why
    INHIBIT.write_text("1")
    try:
        sh("zpool", "import", "-N", "-d", "/dev/mapper", "stick")
        for command in commands:
            sh(*command)
        export_zpool("stick")
    finally:
        INHIBIT.write_text("0")
