# SPDX-License-Identifier: BSD-2-Clause
"""Guests that lose their power: QEMU, and the disk server under it.

A guest is booted once.  What it is then (without zfs loaded, without the
pool's disk) is kept in a file, and every cut is followed by a new guest from
that file: a kernel that has never seen the pool, in seconds instead of the
minute that a boot takes under emulation.  What two boots never share is made
anew in each: the boot id, the clock, the state of the random generators.
"""

import json
import os
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from tests.vm import vm

HERE = Path(__file__).resolve().parent
#: how the pool's disk is called in the guest
SERIAL = "power"
DEVICE = f"/dev/disk/by-id/virtio-{SERIAL}"
#: seconds
LIMIT = 120.0
#: without vector units (and see vm.EMULATED_CPU)
SIMPLE_CPU = "qemu64,cx16=off"

_PREPARE = (
    "mkdir -p /root/src && tar -c -C /src --exclude=./.?* --exclude=./build ."
    " | tar -x -C /root/src"
    # its random generator is seeded when it is loaded, so that is for later
    " && modprobe -r zfs && modprobe -n zfs"
    # so that python is in memory
    " && cd /root/src && python3 -c 'import asyncio, json, libzfs_core'"
    " ; umount /src /out && sync"
)
_FRESH = (
    "echo {random} >/dev/urandom && python3 -c"
    ' "import fcntl, os;'
    " fcntl.ioctl(os.open('/dev/urandom', os.O_RDWR), 0x5207)\""
    " && date -s @{now} >/dev/null && echo {boot_id} >/run/boot_id"
    " && mount --bind /run/boot_id /proc/sys/kernel/random/boot_id"
    " && modprobe zfs zfs_arc_max=268435456"
)


class Monitor:
    """QEMU's own protocol, as much of it as is needed."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + LIMIT
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError as exc:
                if process.poll() is not None or time.monotonic() > end:
                    raise vm.Failed("QEMU did not start") from exc
                time.sleep(0.05)
        self._socket.settimeout(LIMIT)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.do("qmp_capabilities")

    def do(self, verb: str, **arguments: Any) -> Any:
        """:raises vm.Failed: if QEMU refuses"""
        json.dump({"execute": verb, "arguments": arguments}, self._file)
        self._file.write("\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise vm.Failed(f"QEMU, {verb}: {answer['error']['desc']}")
        raise vm.Failed(f"QEMU went away at {verb}")

    def wait(self, verb: str, *status: str) -> None:
        """Until *verb* answers with one of *status*."""
        end = time.monotonic() + LIMIT
        while (answer := self.do(verb).get("status")) not in status:
            if answer == "failed" or time.monotonic() > end:
                raise vm.Failed(f"QEMU, {verb}: {answer}")
            time.sleep(0.05)


class Disk:
    """The pool's disk: a raw file, and a server for it until each cut."""

    def __init__(self, work: Path, mib: int) -> None:
        self.image = work / "pool.img"
        self.socket = work / "nbd"
        self._report = work / "cut.json"
        self._freeze = work / "freeze"
        self._process: subprocess.Popen[bytes] | None = None
        self._mib = mib
        self.wipe()

    def wipe(self) -> None:
        """Blank again."""
        with open(self.image, "wb") as file:
            file.truncate(self._mib << 20)

    def serve(self, keep: float, piece: int, seed: str) -> None:
        """:param keep, piece, seed: see disk.py"""
        self._report.unlink(missing_ok=True)
        self._freeze.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *("nbdkit", "--foreground", "--exit-with-parent"),
                *("--unix", str(self.socket), "python", str(HERE / "disk.py")),
                *(f"image={self.image}", f"report={self._report}"),
                *(f"keep={keep}", f"piece={piece}", f"seed={seed}"),
                f"freeze={self._freeze}",
            ],
            stdin=subprocess.DEVNULL,
        )
        end = time.monotonic() + LIMIT
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise vm.Failed("nbdkit did not start")
            time.sleep(0.02)

    def freeze(self, limit: float) -> None:
        """Wait until it stands still with something unflushed; at most
        *limit* seconds."""
        self._freeze.touch()
        end = time.monotonic() + limit
        while not self._report.exists() and time.monotonic() < end:
            time.sleep(0.01)

    def cut(self) -> dict[str, int]:
        """What became of the unflushed writes; the client was killed."""
        assert self._process is not None
        end = time.monotonic() + LIMIT
        while not self._report.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise vm.Failed("the disk server did not see the cut")
            time.sleep(0.02)
        self.kill()
        numbers: dict[str, int] = json.loads(self._report.read_text("ascii"))
        return numbers

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Machine:
    """One guest after the other, on the same disk.

    :param work: a folder for all that is theirs
    """

    def __init__(self, work: Path, mib: int) -> None:
        self.work = work
        self.disk = Disk(work, mib)
        self._place = vm.image()
        self._root = work / "root.qcow2"
        self._kept = work / "guest"
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None

    def _launch(self, root: str, *more: str) -> Monitor:
        for name in ("ctl", "qmp", "console"):
            (self.work / name).unlink(missing_ok=True)
        command = vm.qemu(self._place, self.work, vm.out_folder(), root, ())
        # zfs measures all vector units when it is loaded, which takes longer
        # than all else if they are emulated
        command = [SIMPLE_CPU if w == vm.EMULATED_CPU else w for w in command]
        with open(self.work / "qemu.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *vm.TIED,
                    *command,
                    *("-device", "pcie-root-port,id=port1,chassis=1,slot=1"),
                    *("-qmp", f"unix:{self.work / 'qmp'},server=on,wait=off"),
                    *more,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Monitor(self.work / "qmp", self._process)

    def boot(self) -> None:
        """Boot a guest and keep it in a file."""
        begin = time.monotonic()
        subprocess.run(
            [
                *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"),
                *("-b", str(self._place / "root.img"), str(self._root)),
            ],
            check=True,
        )
        monitor = self._launch(f"file={self._root},format=qcow2")
        self._port = vm.connect(self.work, self._process)
        vm.wait_for_boot(self._port)
        self.do(_PREPARE)
        self._port.close()
        monitor.do("stop")
        monitor.do("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        monitor.do("migrate", uri=f"exec:cat >{self._kept}")
        monitor.wait("query-migrate", "completed")
        self.kill()
        size = self._kept.stat().st_size >> 20
        vm.say(
            f"guest with OpenZFS {vm.SUITE} booted in"
            f" {time.monotonic() - begin:.0f} s and kept, {size} MiB"
        )

    def restore(self, keep: float, piece: int, seed: str) -> None:
        """A new guest, with the disk; the parameters are those of the cut
        that will end it, see disk.py."""
        self.disk.serve(keep, piece, seed)
        monitor = self._launch(
            f"file={self._root},format=qcow2,snapshot=on",
            *("-incoming", f"exec:cat {self._kept}"),
        )
        monitor.wait("query-status", "running", "paused")
        # before that the port is not yet the one that the guest knows, and
        # QEMU has been seen to end
        self._port = vm.connect(self.work, self._process)
        monitor.do("cont")
        vm.synchronise(self._port)
        self.do(
            _FRESH.format(
                random=os.urandom(32).hex(),
                now=int(time.time()),
                boot_id=uuid.uuid4(),
            )
        )
        monitor.do(
            "blockdev-add",
            **{
                "driver": "nbd",
                "node-name": "pool",
                "server": {"type": "unix", "path": str(self.disk.socket)},
                "cache": {"direct": True, "no-flush": False},
            },
        )
        monitor.do(
            "device_add",
            driver="virtio-blk-pci",
            bus="port1",
            drive="pool",
            serial=SERIAL,
            **{"write-cache": "on"},
        )
        self.do(
            f"for i in $(seq 300); do [ -e {DEVICE} ] && break; sleep 0.1;"
            f" done; grep -qx 'write back' /sys/block/$(basename"
            f" $(readlink {DEVICE}))/queue/write_cache"
        )

    def do(self, command: str) -> str:
        """Run *command* in the guest; what it printed.

        :raises vm.Failed: if it fails
        """
        lines: list[str] = []
        for line in vm.lines_of(self.start(command), LIMIT):
            if line.startswith("guest-exit "):
                if line != "guest-exit 0":
                    raise vm.Failed(f"{command}: {line}\n" + "\n".join(lines))
                return "\n".join(lines)
            lines.append(line)
        raise AssertionError("unreachable")

    def start(self, command: str) -> socket.socket:
        """Begin *command* in the guest; where its output can be read."""
        assert self._port is not None
        self._port.sendall(command.encode() + b"\n")
        return self._port

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def cut(self) -> dict[str, int]:
        """No power any more; what that did to the disk."""
        self.kill()
        return self.disk.cut()

    def console(self) -> str:
        """What QEMU said and how the guest's console ends."""
        log = (self.work / "qemu.log").read_text(errors="replace")
        return log[-2000:] + vm.console_end(self.work)

    def close(self) -> None:
        self.kill()
        self.disk.kill()
