# SPDX-License-Identifier: BSD-2-Clause
"""dom0 in the guest: its qubesd, and a person who types qvm-* commands.

Each command, how it ended and what it took is printed as it happens and
written to /out/qubesd, which is VM_OUT on the host; a status or an output that
is not as expected shows what qubesd said last.
"""

import fcntl
import importlib
import io
import json
import logging
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .stubs import libvirt

OUT = Path("/out/qubesd")
LOG = OUT / "qubesd.log"
MIB = 1 << 20
#: how the root volume of the template begins
ROOT = b"the template's root"
SOCKET = "/run/qubesd.sock"
#: what qubesd is made of; in the guest
CORE_ADMIN = Path("/core-admin/version")
IS_R43 = CORE_ADMIN.exists() and CORE_ADMIN.read_text("ascii")[:4] == "4.3."
STORE = Path("/var/lib/qubes/qubes.xml")
#: with a template in a pool of its own, a test would show nothing more
STANDALONE = ("qvm-create", "-C", "StandaloneVM", "-l", "blue", "-P")
#: seconds until a command, or qubesd's start, is given up
LIMIT = 300
#: where its root has a PATH; all else of the environment is kept away, as
#: systemd does
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


def tell(text):
    """To who looks on, and to the transcript."""
    print(text, flush=True)
    with open(OUT / "transcript.txt", "a", encoding="utf-8") as file:
        file.write(text + "\n")


def tail(text, lines=25):
    return "\n".join(text.rstrip().split("\n")[-lines:])


class Call:
    """A command that runs.

    A qvm-* tool is run in a fork of this process, which has its modules
    already: to start Python takes seconds where the machine is emulated.

    :param stdin: what is on its standard input, or a file that is
    """

    def __init__(self, command, stdin=b""):
        self.command = command
        self.began = time.monotonic()
        self._output = tempfile.TemporaryFile()
        with _file(stdin) as given:
            if command[0].startswith(("qvm-", "qubes-")) and (
                command[0] != "qvm-zfs"
            ):
                module = _tool(command[0])
                self._pid = os.fork()
                if not self._pid:
                    _become_tool(module, command, given, self._output)
            else:
                self._pid = subprocess.Popen(
                    command,
                    stdin=given,
                    stdout=self._output,
                    stderr=subprocess.STDOUT,
                    env=ENVIRON,
                ).pid

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)

    def end(self):
        """Its status, negative if a signal ended it, and its output."""
        end = os.pidfd_open(self._pid)
        if not select.select([end], [], [], LIMIT)[0]:
            self.kill()
        os.close(end)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.close()
        seconds = time.monotonic() - self.began
        said = "".join(f"\n    {line}" for line in text.rstrip().split("\n"))
        tell(
            f"$ {shlex.join(self.command)}   [{status}, {seconds:.1f} s]"
            + (said if text.strip() else "")
        )
        return status, text


def _tool(name):
    """Its module; some take their name from sys.argv as they are imported."""
    ours, sys.argv = sys.argv, [f"/usr/bin/{name}"]
    try:
        return importlib.import_module(
            f"qubesadmin.tools.{name.replace('-', '_')}"
        )
    finally:
        sys.argv = ours


def _file(content):
    if not isinstance(content, bytes):
        return content
    file = tempfile.TemporaryFile()
    file.write(content)
    file.seek(0)
    return file


def _become_tool(module, command, given, output):
    """What the tool's own process would do."""
    status = 1
    try:
        for number, file in ((0, given), (1, output), (2, output)):
            os.dup2(file.fileno(), number)
        # as exec() would: the other end of its stdin may be among them
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
        for name in ("stdout", "stderr"):
            raw = io.FileIO(1, "w", closefd=False)
            stream = io.TextIOWrapper(raw, write_through=True)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = [f"/usr/bin/{command[0]}", *command[1:]]
        os.environ.clear()
        os.environ.update(ENVIRON)
        os.chdir("/root")
        # what this process does with what is logged is not the tool's
        logging.getLogger().handlers.clear()
        try:
            status = module.main() or 0
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Dom0:
    """The guest as dom0, with qubesd and the tools.

    :ivar process: qubesd, or None
    """

    def __init__(self):
        OUT.mkdir(parents=True, exist_ok=True)
        self.process = None
        self._read = 0
        # whose screen it is, as qubes.AskPassword finds them
        self._session = subprocess.Popen(
            ["setpriv", "--reuid=user", "--clear-groups", "sleep", "infinity"],
            env={**ENVIRON, "DISPLAY": ":0"},
        )

    # --- qubesd

    def start(self, **environ):
        """Start qubesd, and wait until it answers."""
        began = time.monotonic()
        with open(LOG, "ab") as log:
            self.process = subprocess.Popen(
                ["qubesd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**ENVIRON, **environ},
                cwd="/",
                start_new_session=True,
            )
        while not self.answers():
            late = time.monotonic() - began > LIMIT
            if late or self.process.poll() is not None:
                raise AssertionError(f"qubesd did not start:\n{self.said()}")
            time.sleep(0.2)
        tell(f"-- qubesd is up after {time.monotonic() - began:.1f} s")

    def answers(self):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(SOCKET)
            except OSError:
                return False
        return True

    def stop(self, number=signal.SIGTERM):
        """End qubesd; by SIGKILL it is a crash."""
        self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        tell(f"-- {number.name} to qubesd: it ended with status {status}")
        if number == signal.SIGTERM and status:
            raise AssertionError(f"qubesd ended badly:\n{self.said()}")

    def said(self, lines=25):
        """The end of qubesd's log."""
        return tail(LOG.read_text("utf-8", errors="replace"), lines)

    def new_log(self):
        """What was added to it since this was asked last."""
        text = LOG.read_bytes()[self._read :]
        self._read += len(text)
        return text.decode(errors="replace")

    def end_all(self):
        if self.process.poll() is None:
            self.stop()
        self._session.kill()

    # --- commands

    def begin(self, *command, stdin=b""):
        return Call(command, stdin)

    def run(self, *command, stdin=b"", **expected):
        """A command's output; for *expected* see end()."""
        return self.end(self.begin(*command, stdin=stdin), **expected)

    def end(self, call, status=0, says=(), traced=False):
        """The output of a command that was begun.

        :param says: what must be in it, one text or several
        :param traced: whether it is known to end in a traceback
        :raises AssertionError: if it did not end, or speak, as expected
        """
        ended, text = call.end()
        wrong = []
        if ended != status:
            wrong.append(f"its status is {ended}, not {status}")
        for each in (says,) if isinstance(says, str) else says:
            if each not in text:
                wrong.append(f"it does not say {each!r}")
        if not traced and "Traceback (most recent" in text:
            wrong.append("it shows a traceback")
        if wrong:
            raise AssertionError(
                f"{shlex.join(call.command)}: {'; '.join(wrong)}\n{text}\n"
                f"qubesd's log ends:\n{self.said()}"
            )
        return text

    def shutdown(self, *qubes):
        """Shut qubes down and wait for their end; return the output."""
        return self.run("qvm-shutdown", "--wait", *qubes)

    def cycle(self, qube):
        """Start a qube and shut it down."""
        self.run("qvm-start", qube)
        self.shutdown(qube)

    def session(self, qube, content):
        """Start a qube, let it write to its private volume, shut it down."""
        self.run("qvm-start", qube)
        write(qube, "xvdb", content)
        self.shutdown(qube)

    def refuses_start(self, qube, says):
        """Check that a start is refused in one line that contains *says*."""
        line = self.run("qvm-start", qube, status=1, says=says)
        assert "Got empty response" not in line
        assert len(line.strip().splitlines()) == 1
        self.run("qvm-ls", "--fields=STATE", qube, says="Halted")

    def revisions(self, volume):
        """Their ids, the oldest first."""
        return self.run("qvm-volume", "info", volume, "revisions").split()

    def lists(self, volume, ids):
        """Wait until these are its revisions.

        In R4.3 "qvm-shutdown --wait" can return before they are final.
        """
        until(lambda: self.revisions(volume) == ids, f"{volume} has {ids}")

    def give(self, volume, data, *options, **expected):
        """qvm-volume import, of a file."""
        file = Path("/root/given")
        file.write_bytes(data)
        command = ("qvm-volume", "import", *options, volume, str(file))
        return self.run(*command, **expected)

    def begin_import(self, volume):
        """qvm-volume import of 4 MiB that has sent a part, and its pipe."""
        before = datasets("tank")
        end, ours = os.pipe()
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, MIB)
        command = ("qvm-volume", "import", "--size", str(4 * MIB))
        call = self.begin(*command, volume, "-", stdin=open(end, "rb"))
        os.write(ours, b"half".ljust(fcntl.fcntl(ours, fcntl.F_GETPIPE_SZ)))
        until(lambda: datasets("tank") != before, "the import begins")
        return call, ours

    # --- the person at the screen

    def answer(self, *lines):
        """What they will answer; whatever is asked beyond that is cancelled."""
        lines = "".join(f"{line}\n" for line in lines)
        for name, text in (("answers", lines), ("asked", "")):
            file = Path("/run/person", name)
            file.write_text(text, "utf-8")
            file.chmod(0o666)

    def asked(self):
        """What they were asked since."""
        return Path("/run/person/asked").read_text("utf-8").splitlines()


def ends(log):
    """The last line of each traceback that our package had a part in; core
    logs refusals, too, and of several at once it hears the first alone."""
    for trace in log.split("\nTraceback (most recent call last):\n")[1:]:
        inside, _, rest = trace.partition("\n\n")
        end = next(line for line in inside.split("\n") if line[:1] != " ")
        goes_on = rest.startswith(("The above exception", "During handling"))
        if "qubes_storage_zfs" in inside and not goes_on:
            yield end


# --- what is in the disks of a qube that runs


def machine(qube):
    """Its libvirt XML, state and process, as stubs/libvirt.py keeps them."""
    for file in Path("/run/guests").glob("*.json"):
        found = json.loads(file.read_text("utf-8"))
        if found["name"] == qube:
            return found
    raise AssertionError(f"{qube} never ran")


def lives(pid):
    return libvirt.lives(pid)


def disk(qube, target):
    xml = machine(qube)["xml"]
    return {name: source for name, source, _ in libvirt.disks(xml)}[target]


def write(qube, target, data, offset=0):
    """The qube writes to its disk, and sees to it that it is there."""
    fd = os.open(disk(qube, target), os.O_RDWR)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(qube, target, size, offset=0):
    fd = os.open(disk(qube, target), os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


# --- what ZFS says


def zfs(*command):
    """The lines that a command of ZFS prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)}: {done.stderr}")
    return done.stdout.splitlines()


def export(zpool):
    """Export a zpool; retry while a process looks at one of its volumes."""
    command = ("zpool", "export", zpool)
    until(
        lambda: not subprocess.run(command, check=False).returncode,
        f"{zpool} is exported",
    )


def datasets(above):
    return zfs("zfs", "list", "-H", "-r", "-o", "name", above)


def until(true, what, seconds=60):
    """Wait until *true* gives something, and give it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {seconds} s: {what}")
        time.sleep(0.2)
    return found
