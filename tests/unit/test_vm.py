# SPDX-License-Identifier: BSD-2-Clause
"""A guest ends with the command that booted it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm import vm

#: a stand-in for QEMU: it boots at once, accepts one command, reports its
#: process and folder, and runs until it is killed
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
    """Return an environment with an image and a stand-in for QEMU."""
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


def wait_until(condition, description):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not within 20 s: {description}"
        time.sleep(0.02)


def started(environment, *command):
    """Start *command*; return when its stand-in has reported."""
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
    """Start *command*; return it, and the process and folder of its guest."""
    process = started(environment, *command)
    report = Path(environment["STAND_IN_PID"])
    number, folder = report.read_text().split()
    return process, int(number), Path(folder)


def is_running(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False
    # a zombie has ended and waits for its parent
    return state.rpartition(")")[2].split()[0] != "Z"


def is_left(number):
    """Kill a guest that still runs; return whether it did."""
    left = is_running(number)
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
        # a terminal sends these signals to make and its children
        os.killpg(process.pid, ending)
    else:
        process.send_signal(ending)
    try:
        wait_until(
            lambda: not is_running(guest), f"the guest ends at {ending.name}"
        )
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
        assert is_running(guest)
        subprocess.run(
            [*VM_PY, "down"], cwd=vm.PROJECT, env=environment, check=True
        )
        wait_until(lambda: not is_running(guest), "the guest ends")
        assert not folder.exists()
    finally:
        assert not is_left(guest)


def test_building_an_image_ends_with_its_command(environment, tmp_path):
    vm.image_place().rmdir()
    report = Path(environment["STAND_IN_PID"])
    for name, script in {
        "sudo": 'exec env "$@"',
        # the real unshare needs root
        "unshare": 'shift; exec "$@"',
        # runs the recipe, and ends only after its own child
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
        assert not is_running(number)
        assert not vm.image_place().exists()
    finally:
        assert not is_left(number)
