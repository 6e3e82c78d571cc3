#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Open a root shell in the test guest.

shell.py            at the guest's console; the guest ends with the shell
shell.py --ssh      by ssh, so that several shells are possible
"""

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import tty
from pathlib import Path

import vm

FOLDER = "/root/src"
#: the guest works on a copy, because it sees the project read-only
PREPARE = f"cp -a /src {FOLDER}"
HINT = "try: cd src && python3 -m pytest -k revert tests/zfs"


def at_the_console(work: Path) -> None:
    """Connect the terminal to the guest's console until the shell ends."""
    if not sys.stdin.isatty():
        raise vm.Failed("a shell needs a terminal")
    size = shutil.get_terminal_size()
    shell = (
        f"{PREPARE}; stty rows {size.lines} cols {size.columns} </dev/ttyS0;"
        f" export TERM={shlex.quote(os.environ.get('TERM', 'linux'))};"
        # discard what was typed before the shell started
        " python3 -c 'import os, termios as t;"
        ' t.tcflush(os.open("/dev/ttyS0", os.O_RDWR), t.TCIFLUSH)\';'
        f" echo {shlex.quote(HINT)} >/dev/ttyS0;"
        " exec setsid -c bash -l </dev/ttyS0 >/dev/ttyS0 2>&1"
    )
    before = termios.tcgetattr(sys.stdin)
    terminal = "-net", "none", "-chardev", "stdio,id=tty,signal=off"
    try:
        with vm.guest(work, devices=terminal, console="chardev:tty") as port:
            tty.setraw(sys.stdin)
            vm.execute(port, shell, limit=None)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def by_ssh(work: Path) -> None:
    """Run a shell by ssh; print its command, which works until it ends."""
    key, number = work / "key", str(free_port())
    run = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(run, check=True)
    public = shlex.quote(key.with_suffix(".pub").read_text("ascii").strip())
    forward = f"hostfwd=tcp:127.0.0.1:{number}-:22"
    card = "-nic", f"user,restrict=on,model=virtio-net-pci,{forward}"
    serve = (
        f"{PREPARE}; modprobe virtio_net; udevadm settle;"
        " card=$(ls /sys/class/net | grep -v lo); ip link set $card up;"
        " ip addr add 10.0.2.15/24 dev $card; mkdir -p /run/sshd /root/.ssh;"
        f" ssh-keygen -A; echo {public} >/root/.ssh/authorized_keys;"
        " /usr/sbin/sshd"
    )
    ssh = [
        *("ssh", "-i", str(key), "-p", number, "-o", "LogLevel=ERROR"),
        *("-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1"),
    ]
    with vm.guest(work, devices=card) as port:
        if vm.execute(port, serve):
            raise vm.Failed("the guest's sshd did not start")
        vm.say(f"for another shell: {shlex.join(ssh)}")
        vm.say(HINT)
        subprocess.run(ssh, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ssh", action="store_true")
    ssh = parser.parse_args().ssh
    vm.on_end()
    missing = [name for name in ("ssh", "ssh-keygen") if not shutil.which(name)]
    try:
        if ssh and missing:
            raise vm.Failed(f"{missing[0]} is not installed; install it")
        with tempfile.TemporaryDirectory(prefix="qz-vm-") as folder:
            (by_ssh if ssh else at_the_console)(Path(folder))
            return 0
    except vm.Failed as exc:
        vm.say(str(exc))
        return 1


if __name__ == "__main__":
    sys.exit(main())
