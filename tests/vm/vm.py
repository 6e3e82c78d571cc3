#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Run the test guest: a QEMU machine with the real zfs module.

    vm.py image                 print the folder of the guest's image; build it
                                if it does not exist
    vm.py run -- COMMAND        boot, run COMMAND in a shell there, power off
    vm.py up | exec -- COMMAND | down
                                the same guest, which runs between commands

ZFS_SUITE=2.3|2.4 chooses the guest.  In it, the project is at /src (read-only),
and the checkouts that variables name (CHECKOUTS) are beside it.  Files in /out
are in $VM_OUT afterwards.  VM_KERNEL_WORDS is added to the kernel's command
line, for example init_on_free=1.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "qubes-storage-zfs"
)
SUITE = os.environ.get("ZFS_SUITE", "2.3")

#: variables that may name a checkout -> its folder in the guest
CHECKOUTS = {
    "QUBES_CORE_ADMIN": "core-admin",
    "QUBES_CORE_ADMIN_CLIENT": "core-admin-client",
    "QUBES_CORE_ADMIN_LINUX": "core-admin-linux",
    "QUBES_CORE_QREXEC": "core-qrexec",
    "QUBES_LINUX_UTILS": "linux-utils",
}

#: sizes of the empty disks /dev/vdb, /dev/vdc, ... (MiB, sparse)
DISKS = tuple(map(int, os.environ.get("VM_DISKS", "4096 4096 512 512").split()))
MEMORY_MIB = 3072
#: seconds
BOOT_LIMIT = 300
SILENCE_LIMIT = int(os.environ.get("VM_SILENCE_LIMIT", "600"))
KVM_PROBE_LIMIT = 30
#: "work": a clock that counts the instructions of the guest, so that times in
#: the guest do not depend on the load of the host
CLOCK = os.environ.get("VM_CLOCK", "wall")
#: processors of an emulated guest.  With two, locks and wake-ups between them
#: cost as much as the second one gains: 20 tests took 118 s in a guest with two
#: processors, and 115 s in each of two guests with one
PROCESSORS = os.environ.get("VM_PROCESSORS", "1")
#: kernel parameters of an emulated guest.  QEMU translates code again for each
#: virtual address at which it is mapped.  With these, and page tables of four
#: levels (la57=off), starting a process takes 20 ms; without them, 70 ms
EMULATED = "norandmaps nokaslr mitigations=off"
#: more kernel parameters, from the environment
MORE_WORDS = os.environ.get("VM_KERNEL_WORDS", "")
#: cx16=off: after a cmpxchg16b, which the kernel's allocator uses, QEMU 7.2 can
#: leave wrong flags, and an interrupt at that moment causes a panic
EMULATED_CPU = "max,la57=off,cx16=off"


#: signals that end this process
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Failed(Exception):
    """A failure to report to the user; the message is a sentence."""


class Panicked(Failed):
    """The kernel of the guest panicked before it ran a command."""


#: prefix of a command that the kernel kills when its parent process ends
TIED = ("setpriv", "--pdeathsig", "KILL")


def leave(number: int, _frame: object) -> None:
    """Exit, as a handler of signals, so that all "finally" clauses run."""
    sys.exit(128 + number)


def on_end(handler: Callable[[int, Any], Any] = leave) -> None:
    """Call *handler* for each signal that would end this process.

    QEMU has a session of its own, so it does not get the terminal's signals.
    The code that started it ends it and removes its folder.
    """
    for number in ENDING:
        # nohup makes a process ignore SIGHUP
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
    # the parent process may have blocked them
    unblock()


def unblock() -> None:
    """Unblock the signals that end this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


# --- the image --------------------------------------------------------------


def image() -> Path:
    """Return the folder of the suite's image; build it if it does not exist."""
    CACHE.mkdir(parents=True, exist_ok=True)
    place = image_place()
    with open(CACHE / f"zfs-{SUITE}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            build(place)
    return place


def image_place() -> Path:
    """Return the folder of the suite's image, which may not exist yet."""
    recipe = hashlib.sha256(SUITE.encode())
    for name in ("image.sh", "guest-init"):
        recipe.update((HERE / name).read_bytes())
    return CACHE / f"zfs-{SUITE}-{recipe.hexdigest()[:12]}"


#: message of mmdebstrap during the longest step -> text to show
_MEANING = {
    "I: installing remaining packages inside the chroot...": (
        "installing packages; zfs is being compiled"
    )
}


def build(place: Path) -> None:
    """Build an image; only a complete one gets the name *place*."""
    say(
        f"building the guest image for OpenZFS {SUITE}"
        " (once; 5 to 15 minutes, most of it DKMS compiling zfs)"
    )
    for old in CACHE.glob(f"zfs-{SUITE}-*"):
        remove_tree(old)
    partial = place.with_name(place.name + ".partial")
    log = CACHE / f"zfs-{SUITE}-build.log"
    recipe = ["bash", str(HERE / "image.sh"), SUITE, str(partial)]
    # Without a mount namespace, a build that is killed leaves its mounts on the
    # host.  A container may lack the right to create one
    apart = ["unshare", "--mount"]
    attempt = [*sudo(), *apart, "true"]
    if not subprocess.run(attempt, capture_output=True, check=False).returncode:
        recipe = [*apart, *recipe]
    command = [*sudo(), *recipe]
    if sudo() and "DEBIAN_MIRROR" in os.environ:
        command[1:1] = [f"DEBIAN_MIRROR={os.environ['DEBIAN_MIRROR']}"]
    start = time.monotonic()
    with (
        open(log, "wb") as out,
        begun(command, out) as process,
        killed(process, partial),
    ):
        unblock()
        while (status := poll(process, 20)) is None:
            with open(log, "rb") as read:
                read.seek(max(0, log.stat().st_size - 400))
                last = read.read().decode(errors="replace").split("\n")
            line = next((s for s in reversed(last) if s.strip()), "")
            doing = _MEANING.get(line.strip(), line.strip()[:60])
            say(f"{time.monotonic() - start:5.0f} s  {doing}")
    if status:
        tail = log.read_text(errors="replace").split("\n")[-25:]
        remove_tree(partial)
        raise Failed(
            "cannot build the image; its log ends:\n" + "\n".join(tail)
        )
    if sudo():
        subprocess.run(
            [*sudo(), "chown", "-R", str(os.getuid()), str(partial)], check=True
        )
    partial.rename(place)
    say(f"image built in {time.monotonic() - start:.0f} s: {place}")


@contextlib.contextmanager
def begun(
    command: Sequence[str], out: IO[bytes]
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a command, with signals blocked until unblock() is called.

    A signal that arrives while Popen returns would leave the command running.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=unblock,
        ) as process:
            yield process
    finally:
        unblock()


@contextlib.contextmanager
def killed(process: "subprocess.Popen[bytes]", place: Path) -> Iterator[None]:
    """If the block raises, kill the group of *process* and remove *place*."""
    try:
        yield
    except BaseException:
        # the processes may belong to root
        group = f"-{process.pid}"
        subprocess.run([*sudo(), "kill", "-KILL", "--", group], check=False)
        process.wait()
        remove_tree(place)
        raise


def poll(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def sudo() -> list[str]:
    return [] if os.getuid() == 0 else ["sudo"]


def remove_tree(place: Path) -> None:
    if place.exists():
        subprocess.run([*sudo(), "rm", "-rf", str(place)], check=True)


# --- QEMU -------------------------------------------------------------------


def accelerator(place: Path) -> list[str]:
    """Return QEMU's options for KVM if a kernel boots with it, else emulation.

    On some hosts /dev/kvm can be opened, but a guest then hangs.  So this boots
    a kernel once, and stores the result until the host boots again.
    """
    if CLOCK == "work":
        counted = ["-accel", "tcg,thread=single", "-icount", "shift=0"]
        return [*counted, "-cpu", EMULATED_CPU]
    tcg = ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return tcg
    kvm = ["-accel", "kvm", "-cpu", "host"]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    cache_file = CACHE / "accelerator"
    with contextlib.suppress(FileNotFoundError):
        answer = cache_file.read_text("ascii").split()
        if len(answer) == 2 and answer[0] == boot_id:
            return kvm if answer[1] == "kvm" else tcg
    say(f"checking whether KVM works (at most {KVM_PROBE_LIMIT} s)")
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "console")
        with subprocess.Popen(
            [
                *(*TIED, "qemu-system-x86_64", *kvm, "-m", "512"),
                "-no-reboot",
                *("-display", "none", "-monitor", "none", "-net", "none"),
                *("-serial", f"file:{probe}", "-kernel", place / "vmlinuz"),
                *("-append", "console=ttyS0 panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            # without a root file system, a working kernel panics and exits
            try:
                status = poll(process, KVM_PROBE_LIMIT)
            finally:
                process.kill()
        alive = probe.exists() and "Linux version" in probe.read_text(
            errors="replace"
        )
    works = status == 0 and alive
    cache_file.write_text(f"{boot_id} {'kvm' if works else 'tcg'}\n", "ascii")
    say("KVM works" if works else "KVM does not work; the guest is emulated")
    return kvm if works else tcg


def qemu(
    place: Path,
    work: Path,
    shared: Path,
    root: str | None = None,
    disks: Sequence[int] = DISKS,
    devices: Sequence[str] = ("-net", "none"),
    console: str | None = None,
) -> list[str]:
    """Return the command line of QEMU.

    :param place: folder of the image
    :param work: folder for sockets, disks and the log of the console
    :param shared: folder that is /out in the guest
    :param root: QEMU's options for the root disk; None: the image, whose
        changes are discarded
    :param disks: sizes of the empty disks in MiB
    :param devices: QEMU's options for more devices
    :param console: QEMU's option for the console; None: to the log
    """
    console = console or f"file:{work / 'console'}"
    if root is None:
        root = f"file={place / 'root.img'},format=raw,snapshot=on"
    accelerated = accelerator(place)
    emulated = "kvm" not in accelerated
    words = (
        "root=/dev/vda rw console=ttyS0 quiet init=/sbin/guest-init panic=-1"
        " sysctl.kernel.hung_task_timeout_secs=60"
    )
    if emulated:
        words += f" {EMULATED}"
    if MORE_WORDS:
        words += f" {MORE_WORDS}"
    command = [
        *("qemu-system-x86_64", *accelerated, "-machine", "q35"),
        *("-smp", PROCESSORS if emulated else "2"),
        *("-m", str(MEMORY_MIB), "-no-reboot", *devices),
        *("-display", "none", "-monitor", "none", "-serial", console),
        *("-kernel", str(place / "vmlinuz"), "-initrd", str(place / "initrd")),
        *("-append", words),
        "-drive",
        f"{root},if=none,id=root,cache=unsafe",
        *("-device", "virtio-blk-pci,drive=root"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial"),
        *("-chardev", f"socket,id=ctl,path={work / 'ctl'},server=on,wait=off"),
        *("-device", "virtserialport,chardev=ctl,name=ctl"),
    ]
    for number, size in enumerate(disks):
        disk = work / f"disk{number}"
        with open(disk, "wb") as file:
            file.truncate(size << 20)
        command += [
            "-drive",
            f"file={disk},format=raw,if=none,id=d{number},cache=unsafe,"
            "discard=unmap",
            *("-device", f"virtio-blk-pci,drive=d{number},serial=disk{number}"),
        ]
    folders = {"src": PROJECT, "out": shared}
    for variable, tag in CHECKOUTS.items():
        if variable in os.environ:
            folders[tag] = Path(os.environ[variable]).resolve()
    for tag, folder in folders.items():
        mode = "" if tag == "out" else ",readonly=on"
        command += [
            "-virtfs",
            f"local,path={folder},mount_tag={tag},security_model=none{mode}",
        ]
    return command


def console_end(work: Path, lines: int = 30) -> str:
    try:
        text = (work / "console").read_text(errors="replace")
    except FileNotFoundError:
        return "(the console is empty)"
    return "\n".join(text.split("\n")[-lines:])


def connect(
    work: Path, process: "subprocess.Popen[bytes] | None"
) -> socket.socket:
    port = socket.socket(socket.AF_UNIX)
    for _ in range(200):
        try:
            port.connect(str(work / "ctl"))
            return port
        except OSError:
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.05)
    raise Failed("QEMU did not start:\n" + console_end(work))


def lines_of(port: socket.socket, limit: float | None) -> Iterator[str]:
    """Yield the lines that the guest writes.

    :raises Failed: if the guest writes nothing for *limit* seconds, or ends
    """
    port.settimeout(limit)
    rest = b""
    while True:
        try:
            data = port.recv(65536)
        except TimeoutError as exc:
            raise Failed(f"the guest was silent for {limit} s") from exc
        if not data:
            raise Failed("the guest stopped")
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def synchronise(port: socket.socket) -> None:
    """Skip the remaining output of an earlier, interrupted command."""
    token = f"token-{time.monotonic_ns()}"
    port.sendall(f"echo {token}\n".encode())
    seen = False
    for line in lines_of(port, SILENCE_LIMIT):
        seen = seen or line == token
        if seen and line.startswith("guest-exit "):
            return


def wait_for_boot(port: socket.socket) -> None:
    for line in lines_of(port, BOOT_LIMIT):
        if line.strip() == "guest-ready":
            return


def execute(
    port: socket.socket, command: str, limit: float | None = SILENCE_LIMIT
) -> int:
    """Run *command* in the guest, print its output and return its status.

    :param limit: seconds that it may be silent; None: no limit
    """
    if "\n" in command:
        raise Failed("a command is one line")
    port.sendall(command.encode() + b"\n")
    for line in lines_of(port, limit):
        if line.startswith("guest-exit "):
            return int(line.split()[1])
        print(line, flush=True)
    raise AssertionError("unreachable")


def out_folder() -> Path:
    place = Path(os.environ.get("VM_OUT") or PROJECT / "build" / "vm-out")
    place.mkdir(parents=True, exist_ok=True)
    return place


def start(
    work: Path, **options: Any
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Boot a guest; return its process and the port that takes commands.

    A guest that panics while it boots is booted once more, because it has run
    no command yet.  An emulated processor can fail on code that the kernel
    changes while it runs (seen once in dozens of boots, in code of the clock).
    """
    place = image()
    try:
        return boot(place, work, **options)
    except Panicked as exc:
        say(f"{exc}\nbooting again")
        return boot(place, work, **options)


def boot(
    place: Path, work: Path, stays: bool = False, **options: Any
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Boot a guest once; see start().

    :param stays: whether QEMU outlives this process
    :param options: those of qemu(); with a console, QEMU gets the terminal
    """
    begin = time.monotonic()
    command = qemu(place, work, out_folder(), **options)
    with open(work / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            command if stays else [*TIED, *command],
            stdin=None if "console" in options else subprocess.DEVNULL,
            stdout=None if "console" in options else log,
            stderr=log,
            start_new_session=True,
        )
    try:
        port = connect(work, process)
        wait_for_boot(port)
    except BaseException as exc:
        process.kill()
        process.wait()
        if isinstance(exc, Failed):
            errors = (work / "qemu.log").read_text(errors="replace")
            panicked = "Kernel panic" in console_end(work, 200)
            kind = Panicked if panicked else Failed
            raise kind(
                f"{exc}; the guest did not start.\n{errors}"
                f"Its console ends:\n{console_end(work)}"
            ) from exc
        raise
    say(f"guest with OpenZFS {SUITE} up in {time.monotonic() - begin:.0f} s")
    return process, port


@contextlib.contextmanager
def guest(work: Path, **options: Any) -> Iterator[socket.socket]:
    """Boot a guest that ends with the context; *options* as for boot()."""
    process, port = start(work, **options)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def run(command: str) -> int:
    with tempfile.TemporaryDirectory(prefix="qz-vm-") as folder:
        work = Path(folder)
        with guest(work) as port:
            try:
                return execute(port, command)
            except Failed as exc:
                raise Failed(
                    f"{exc}: killed. Its console ends:\n{console_end(work)}"
                ) from exc


# --- a guest that runs between commands --------------------------------------


def standing() -> Path:
    return CACHE / f"up-{SUITE}"


def up() -> int:
    down()
    standing().mkdir(parents=True)
    process, port = start(standing(), stays=True)
    port.close()
    (standing() / "pid").write_text(str(process.pid), "ascii")
    return 0


def down() -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((standing() / "pid").read_text("ascii")), 9)
    shutil.rmtree(standing(), ignore_errors=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["image", "run", "up", "exec", "down"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = " ".join(args.command).removeprefix("-- ")
    on_end()
    try:
        if args.verb == "image":
            print(image())
            return 0
        if args.verb == "run":
            return run(command)
        if args.verb == "exec":
            port = connect(standing(), None)
            synchronise(port)
            return execute(port, command)
        return up() if args.verb == "up" else down()
    except Failed as exc:
        say(str(exc))
        return 1


if __name__ == "__main__":
    sys.exit(main())
