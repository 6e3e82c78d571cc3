# SPDX-License-Identifier: BSD-2-Clause
"""A zpool on a disk that can hang or fail for a test (device mapper)."""

import contextlib
import os
import subprocess
from pathlib import Path

from qubes_storage_zfs.zfs import commands

from .waiting import until
from .zpools import MIB, export_zpool, sectors, sh


class Mapped:
    """A zpool and its disk.

    :ivar name: the name of both
    """

    def __init__(self, name):
        self.name = name
        self.image = Path(f"/tmp/{name}.img")
        self.path = f"/dev/mapper/{name}"
        with open(self.image, "wb") as file:
            file.truncate(256 * MIB)
        sh("modprobe", "-a", "loop", "dm_mod")
        self.loop = sh("losetup", "--find", "--show", str(self.image))
        length = 256 * MIB // 512
        self.good = f"0 {length} linear {self.loop} 0"
        self.bad = f"0 {length} error"
        sh("dmsetup", "create", name, "--table", self.good)
        sh("udevadm", "settle")
        sh("zpool", "create", *sectors(), "-m", "none", name, self.path)

    def hang(self):
        """Make the disk stop answering."""
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)

    def go_on(self):
        sh("dmsetup", "resume", self.name)

    def _become(self, table):
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        sh("dmsetup", "load", self.name, "--table", table)
        self.go_on()

    def fail(self):
        """Make all I/O on the disk fail; wait until the zpool is suspended."""
        self._become(self.bad)
        # this command hangs until the disk works again
        subprocess.Popen(
            ["zfs", "set", "test:word=x", self.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(
            lambda: commands.is_suspended(self.name),
            f"{self.name} is suspended",
            60,
        )

    def mend(self):
        self._become(self.good)
        sh("zpool", "clear", self.name)

    def import_again(self, *options):
        """Import the zpool again, with empty caches."""
        export_zpool(self.name)
        folder = os.path.dirname(self.path)
        sh("zpool", "import", *options, "-d", folder, self.name)
        sh("udevadm", "settle")
        sh("zpool", "sync", check=False)
        Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")

    def end(self):
        with contextlib.suppress(RuntimeError):
            self.go_on()
        for command in (
            ("zpool", "destroy", "-f", self.name),
            ("udevadm", "settle"),
            ("dmsetup", "remove", "--retry", self.name),
            ("losetup", "--detach", self.loop),
        ):
            sh("timeout", "60", *command, check=False)
        self.image.unlink()
