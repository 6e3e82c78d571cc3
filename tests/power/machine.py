# SPDX-License-Identifier: BSD-2-Clause
"""Guests whose power is cut: QEMU, and the server of the pool's disk.

A guest is booted once and saved to a file, without zfs loaded and without the
pool's disk.  After each cut a new guest is restored from this file.  Its kernel
has never seen the pool.  A restore takes seconds; a boot takes a minute under
emulation.  Each guest gets a boot id, a clock and random numbers of its own,
because two boots never share these.
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
#: serial number of the pool's disk in the guest
SERIAL = "power"
DEVICE = f"/dev/disk/by-id/virtio-{SERIAL}"
#: seconds to wait for QEMU, nbdkit or a command in the guest
LIMIT = 120.0
#: a processor without vector units (see vm.EMULATED_CPU)
SIMPLE_CPU = "qemu64,cx16=off"

_PREPARE = (
    "mkdir -p /root/src && tar -c -C /src --exclude=./.?* --exclude=./build ."
    " | tar -x -C /root/src"
    # zfs seeds its random generator when it is loaded, so load it later
    " && modprobe -r zfs && modprobe -n zfs"
    # have the files of Python in memory
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
    """The part of the QEMU Machine Protocol that is needed here."""

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

    def do(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU; return its answer.

        :raises vm.Failed: if QEMU refuses
        """
        json.dump({"execute": command, "arguments": arguments}, self._file)
        self._file.write("\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise vm.Failed(f"QEMU, {command}: {answer['error']['desc']}")
        raise vm.Failed(f"QEMU ended during {command}")

    def wait(self, command: str, *status: str) -> None:
        """Wait until *command* answers with one of *status*."""
        end = time.monotonic() + LIMIT
        while (answer := self.do(command).get("status")) not in status:
            if answer == "failed" or time.monotonic() > end:
                raise vm.Failed(f"QEMU, {command}: {answer}")
            time.sleep(0.05)


class Disk:
    """The pool's disk: a raw file, and a server that runs until each cut."""

    def __init__(self, work: Path, mib: int) -> None:
        self.image = work / "pool.img"
        self.socket = work / "nbd"
        self._report = work / "cut.json"
        self._freeze = work / "freeze"
        self._process: subprocess.Popen[bytes] | None = None
        self._mib = mib
        self.wipe()

    def wipe(self) -> None:
        """Make the disk blank."""
        with open(self.image, "wb") as file:
            file.truncate(self._mib << 20)

    def serve(self, keep: float, piece: int, seed: str) -> None:
        """Start the server; see disk.py for the parameters."""
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
        """Wait until the disk freezes with unflushed writes.

        :param limit: seconds to wait at most
        """
        self._freeze.touch()
        end = time.monotonic() + limit
        while not self._report.exists() and time.monotonic() < end:
            time.sleep(0.01)

    def cut(self) -> dict[str, int]:
        """Return what became of the unflushed writes of the killed client."""
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

    :param work: folder for the files of all guests
    """

    def __init__(self, work: Path, mib: int) -> None:
        self.work = work
        self.disk = Disk(work, mib)
        self._place = vm.image()
        self._root = work / "root.qcow2"
        self._snapshot_file = work / "guest"
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None

    def _launch(self, root: str, *options: str) -> Monitor:
        for name in ("ctl", "qmp", "console"):
            (self.work / name).unlink(missing_ok=True)
        command = vm.qemu(self._place, self.work, vm.out_folder(), root, ())
        # zfs measures all vector units when it is loaded; emulated ones take
        # longer for this than everything else
        command = [SIMPLE_CPU if w == vm.EMULATED_CPU else w for w in command]
        with open(self.work / "qemu.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *vm.TIED,
                    *command,
                    *("-device", "pcie-root-port,id=port1,chassis=1,slot=1"),
                    *("-qmp", f"unix:{self.work / 'qmp'},server=on,wait=off"),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Monitor(self.work / "qmp", self._process)

    def boot(self) -> None:
        """Boot a guest and save it to a file."""
        start = time.monotonic()
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
        monitor.do("migrate", uri=f"exec:cat >{self._snapshot_file}")
        monitor.wait("query-migrate", "completed")
        self.kill()
        size = self._snapshot_file.stat().st_size >> 20
        vm.say(
            f"guest with OpenZFS {vm.SUITE} booted in"
            f" {time.monotonic() - start:.0f} s and saved, {size} MiB"
        )

    def restore(self, keep: float, piece: int, seed: str) -> None:
        """Restore a new guest with the disk.

        The parameters say what the next cut does; see disk.py.
        """
        self.disk.serve(keep, piece, seed)
        monitor = self._launch(
            f"file={self._root},format=qcow2,snapshot=on",
            *("-incoming", f"exec:cat {self._snapshot_file}"),
        )
        monitor.wait("query-status", "running", "paused")
        # before this, the guest does not know the port yet, and QEMU can end
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
        """Run a command in the guest; return its output.

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
        """Start a command in the guest; return the port with its output."""
        assert self._port is not None
        self._port.sendall(command.encode() + b"\n")
        return self._port

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def cut(self) -> dict[str, int]:
        """Cut the power; return what the disk lost."""
        self.kill()
        return self.disk.cut()

    def console(self) -> str:
        """Return the output of QEMU and the end of the guest's console."""
        log = (self.work / "qemu.log").read_text(errors="replace")
        return log[-2000:] + vm.console_end(self.work)

    def close(self) -> None:
        self.kill()
        self.disk.kill()
