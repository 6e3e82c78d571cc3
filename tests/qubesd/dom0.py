# SPDX-License-Identifier: BSD-2-Clause
"""dom0 in the guest: its qubesd, and a user who types qvm-* commands.

Each command is printed with its status, time and output, and written to
/out/qubesd, which is VM_OUT on the host.  If a status or an output is not as
expected, the error has the end of qubesd's log.
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
#: first bytes of the root volume of the template
ROOT = b"the template's root"
SOCKET = "/run/qubesd.sock"
#: the version of the checkout of core-admin, in the guest
CORE_ADMIN = Path("/core-admin/version")
IS_R43 = CORE_ADMIN.exists() and CORE_ADMIN.read_text("ascii")[:4] == "4.3."
STORE = Path("/var/lib/qubes/qubes.xml")
#: a standalone, because a template in a pool of its own would show no more
STANDALONE = ("qvm-create", "-C", "StandaloneVM", "-l", "blue", "-P")
#: seconds to wait for a command, or for the start of qubesd
LIMIT = 300
#: the only environment variables that qubesd and the tools get, as with
#: systemd
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


def record(text):
    """Print a text and add it to the transcript."""
    print(text, flush=True)
    with open(OUT / "transcript.txt", "a", encoding="utf-8") as file:
        file.write(text + "\n")


def tail(text, lines=25):
    return "\n".join(text.rstrip().split("\n")[-lines:])


class Call:
    """A running command.

    A qvm-* tool runs in a fork of this process, which has imported its modules.
    Starting Python takes seconds on an emulated machine.

    :param stdin: the bytes or the file for its standard input
    """

    def __init__(self, command, stdin=b""):
        self.command = command
        self._started = time.monotonic()
        self._output = tempfile.TemporaryFile()
        with _as_file(stdin) as stdin_file:
            if command[0].startswith(("qvm-", "qubes-")) and (
                command[0] != "qvm-zfs"
            ):
                module = _tool(command[0])
                self._pid = os.fork()
                if not self._pid:
                    _become_tool(module, command, stdin_file, self._output)
            else:
                self._pid = subprocess.Popen(
                    command,
                    stdin=stdin_file,
                    stdout=self._output,
                    stderr=subprocess.STDOUT,
                    env=ENVIRON,
                ).pid

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)

    def end(self):
        """Wait for the command; return its status and output.

        The status is negative if a signal ended the command.
        """
        end = os.pidfd_open(self._pid)
        if not select.select([end], [], [], LIMIT)[0]:
            self.kill()
        os.close(end)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.close()
        seconds = time.monotonic() - self._started
        said = "".join(f"\n    {line}" for line in text.rstrip().split("\n"))
        record(
            f"$ {shlex.join(self.command)}   [{status}, {seconds:.1f} s]"
            + (said if text.strip() else "")
        )
        return status, text


def _tool(name):
    """Import a tool's module; some read their name from sys.argv then."""
    original, sys.argv = sys.argv, [f"/usr/bin/{name}"]
    try:
        return importlib.import_module(
            f"qubesadmin.tools.{name.replace('-', '_')}"
        )
    finally:
        sys.argv = original


def _as_file(content):
    if not isinstance(content, bytes):
        return content
    file = tempfile.TemporaryFile()
    file.write(content)
    file.seek(0)
    return file


def _become_tool(module, command, stdin_file, output):
    """Run the tool in this process, as its own process would."""
    status = 1
    try:
        for number, file in ((0, stdin_file), (1, output), (2, output)):
            os.dup2(file.fileno(), number)
        # as exec() does; one may be the write end of its standard input
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
        # the log handlers of this process do not belong to the tool
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

    :ivar process: the process of qubesd, or None
    """

    def __init__(self):
        OUT.mkdir(parents=True, exist_ok=True)
        self.process = None
        self._read = 0
        # qubes.AskPassword finds the user of the screen by this process
        self._session = subprocess.Popen(
            ["setpriv", "--reuid=user", "--clear-groups", "sleep", "infinity"],
            env={**ENVIRON, "DISPLAY": ":0"},
        )

    # --- qubesd

    def start(self, **environ):
        """Start qubesd, and wait until it answers."""
        start = time.monotonic()
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
            late = time.monotonic() - start > LIMIT
            if late or self.process.poll() is not None:
                raise AssertionError(f"qubesd did not start:\n{self.said()}")
            time.sleep(0.2)
        record(f"-- qubesd is up after {time.monotonic() - start:.1f} s")

    def answers(self):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(SOCKET)
            except OSError:
                return False
        return True

    def stop(self, number=signal.SIGTERM):
        """Stop qubesd; SIGKILL is a crash."""
        self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        record(f"-- {number.name} to qubesd: it ended with status {status}")
        if number == signal.SIGTERM and status:
            raise AssertionError(f"qubesd ended badly:\n{self.said()}")

    def said(self, lines=25):
        """Return the end of qubesd's log."""
        return tail(LOG.read_text("utf-8", errors="replace"), lines)

    def new_log(self):
        """Return the part of the log since the last call."""
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
        """Run a command; return its output. For *expected* see end()."""
        return self.end(self.begin(*command, stdin=stdin), **expected)

    def end(self, call, status=0, says=(), traced=False):
        """Wait for a command; return its output.

        :param says: one text or several that the output must contain
        :param traced: whether the command ends with a traceback
        :raises AssertionError: if status or output is not as expected
        """
        ended, text = call.end()
        wrong = []
        if ended != status:
            wrong.append(f"the status is {ended}, not {status}")
        for text_part in (says,) if isinstance(says, str) else says:
            if text_part not in text:
                wrong.append(f"the output lacks {text_part!r}")
        if not traced and "Traceback (most recent" in text:
            wrong.append("the output has a traceback")
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
        """Return the ids of a volume's revisions, oldest first."""
        return self.run("qvm-volume", "info", volume, "revisions").split()

    def lists(self, volume, ids):
        """Wait until a volume has exactly these revisions.

        In R4.3 "qvm-shutdown --wait" can return before they are final.
        """
        until(lambda: self.revisions(volume) == ids, f"{volume} has {ids}")

    def import_file(self, volume, data, *options, **expected):
        """Import bytes with "qvm-volume import"."""
        file = Path("/root/given")
        file.write_bytes(data)
        command = ("qvm-volume", "import", *options, volume, str(file))
        return self.run(*command, **expected)

    def start_import(self, volume):
        """Start an import of 4 MiB that sends a part; return it and its pipe."""
        before = datasets("tank")
        end, write_end = os.pipe()
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, MIB)
        command = ("qvm-volume", "import", "--size", str(4 * MIB))
        call = self.begin(*command, volume, "-", stdin=open(end, "rb"))
        os.write(
            write_end, b"half".ljust(fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ))
        )
        until(lambda: datasets("tank") != before, "the import has started")
        return call, write_end

    # --- the user at the screen

    def answer(self, *lines):
        """Set the answers to the next prompts; later prompts are cancelled."""
        lines = "".join(f"{line}\n" for line in lines)
        for name, text in (("answers", lines), ("asked", "")):
            file = Path("/run/person", name)
            file.write_text(text, "utf-8")
            file.chmod(0o666)

    def asked(self):
        """Return the prompts since answer()."""
        return Path("/run/person/asked").read_text("utf-8").splitlines()


def driver_errors(log):
    """Yield the last line of each traceback with code of this package.

    core-admin logs refusals too, and of several at once only the first.
    """
    for trace in log.split("\nTraceback (most recent call last):\n")[1:]:
        inside, _, rest = trace.partition("\n\n")
        end = next(line for line in inside.split("\n") if line[:1] != " ")
        goes_on = rest.startswith(("The above exception", "During handling"))
        if "qubes_storage_zfs" in inside and not goes_on:
            yield end


# --- the disks of a running qube


def machine(qube):
    """Return a qube's record in stubs/libvirt.py: XML, state and process."""
    for file in Path("/run/guests").glob("*.json"):
        value = json.loads(file.read_text("utf-8"))
        if value["name"] == qube:
            return value
    raise AssertionError(f"{qube} has not run yet")


def is_alive(pid):
    return libvirt.is_alive(pid)


def disk(qube, target):
    xml = machine(qube)["xml"]
    return {name: source for name, source, _ in libvirt.disks(xml)}[target]


def write(qube, target, data, offset=0):
    """Write to a disk as the qube does, and flush it."""
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


# --- ZFS


def zfs(*command):
    """Run a command; return the lines that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)}: {done.stderr}")
    return done.stdout.splitlines()


def export(zpool):
    """Export a zpool; retry while a process probes one of its volumes."""
    command = ("zpool", "export", zpool)
    until(
        lambda: not subprocess.run(command, check=False).returncode,
        f"{zpool} is exported",
    )


def datasets(above):
    return zfs("zfs", "list", "-H", "-r", "-o", "name", above)


def until(condition, purpose, seconds=60):
    """Wait until *condition()* is true; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {seconds} s: {purpose}")
        time.sleep(0.2)
    return value
