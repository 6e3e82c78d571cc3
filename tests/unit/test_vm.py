# SPDX-License-Identifier: BSD-2-Clause
"""Nothing of a guest is left when the command that booted it is ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm import vm

#: comes up at once, takes one command, reports its process and folder, and
#: runs until it is killed
STAND_IN = f"""#!{sys.executable}
import os, signal, socket, sys
(port,) = [word for word in sys.argv if word.startswith("socket,id=ctl")]
path = port.split("path=")[1].split(",")[0]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
guest = server.accept()[0]
guest.sendall(b"guest-ready\\n")
with open(os.environ["STAND_IN_PID"] + ".new", "w") as file:
    print(os.getpid(), os.path.dirname(path), file=file)
os.rename(file.name, os.environ["STAND_IN_PID"])
signal.pause()
"""
VM_PY = (sys.executable, "tests/vm/vm.py")
ENDINGS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An image, and a QEMU that only looks like one."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(vm, "CACHE", cache / "qubes-storage-zfs")
    vm.image_place().mkdir(parents=True)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    (vm.CACHE / "accelerator").write_text(f"{boot_id} tcg\n", "ascii")
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "STAND_IN_PID": str(tmp_path / "pid"),
        "TMPDIR": str(tmp_path),
        "VM_OUT": str(tmp_path / "out"),
        "XDG_CACHE_HOME": str(cache),
        "ZFS_SUITE": vm.SUITE,
    }


def wait_until(happened, what):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, f"not within 20 s: {what}"
        time.sleep(0.02)


def started(environment, *command):
    """*command* once what it started has reported."""
    process = subprocess.Popen(
        command,
        cwd=vm.PROJECT,
        env=environment,
        start_new_session=True,
        # a shell has its background jobs ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    report = Path(environment["STAND_IN_PID"])
    wait_until(report.exists, "the stand-in runs")
    return process


def booted(environment, *command):
    """*command* when its guest is up, the guest's process and its folder."""
    process = started(environment, *command)
    report = Path(environment["STAND_IN_PID"])
    number, folder = report.read_text().split()
    return process, int(number), Path(folder)


def runs(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False
    # a zombie waits for whoever adopted it
    return state.rpartition(")")[2].split()[0] != "Z"


def is_left(number):
    """End a guest that should have ended; whether there was one."""
    left = runs(number)
    if left:
        os.kill(number, signal.SIGKILL)
    return left


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
@pytest.mark.parametrize(
    "command",
    [
        (*VM_PY, "run", "--", "sleep 600"),
        ("make", "zfs-test"),
    ],
    ids=["vm.py", "make"],
)
def test_the_guest_ends_with_its_command(environment, command, ending):
    process, guest, folder = booted(environment, *command)
    if command[0] == "make" and ending in (signal.SIGINT, signal.SIGHUP):
        # a terminal sends these to make and to what make started
        os.killpg(process.pid, ending)
    else:
        process.send_signal(ending)
    try:
        wait_until(lambda: not runs(guest), f"the guest ends at {ending.name}")
        assert process.wait(20)
        if command[0] == "make" or ending != signal.SIGKILL:
            wait_until(lambda: not folder.exists(), f"{folder} is removed")
    finally:
        assert not is_left(guest)
        process.kill()
        process.wait()


def test_a_guest_of_vm_up_runs_until_vm_down(environment):
    process, guest, folder = booted(environment, *VM_PY, "up")
    try:
        assert process.wait(20) == 0
        assert runs(guest)
        subprocess.run(
            [*VM_PY, "down"], cwd=vm.PROJECT, env=environment, check=True
        )
        wait_until(lambda: not runs(guest), "the guest ends")
        assert not folder.exists()
    finally:
        assert not is_left(guest)


def test_building_an_image_ends_with_its_command(environment, tmp_path):
    vm.image_place().rmdir()
    report = Path(environment["STAND_IN_PID"])
    for name, script in {
        "sudo": 'exec env "$@"',
        # which only root can
        "unshare": 'shift; exec "$@"',
        # what runs the recipe, and does not end before its own child does
        "bash": f"echo $$ >{report}; sleep 600; true",
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    process = started(environment, *VM_PY, "image")
    wait_until(lambda: report.read_text().strip(), "the recipe reports")
    number = int(report.read_text())
    try:
        process.terminate()
        assert process.wait(20)
        assert not runs(number)
        assert not vm.image_place().exists()
    finally:
        assert not is_left(number)
