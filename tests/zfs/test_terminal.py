# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs at a terminal: it never has the passphrase, and restores the echo."""

import json
import os
import pty
import re
import signal
import sys
import termios
from pathlib import Path

import pytest

from qubes_storage_zfs.tools import freed_memory
from qubes_storage_zfs.zfs import keys

from ..support.memory import KEYHOLDER, memory, processes_with
from ..support.prompts import PASSPHRASE
from ..support.tool import COMMAND
from ..support.waiting import until
from ..support.zpools import sh

pytestmark = pytest.mark.side_a

NEW = b"quite another passphrase"


@pytest.fixture
def safe(safe):
    safe.run(keys.unload(safe.container))
    return safe


class Typist:
    """A user at a terminal that runs one command in a shell."""

    def __init__(self, *arguments):
        script = 'trap : INT; "$@"; echo "status $?"; read -r _'
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(
                "/bin/sh", ["sh", "-c", script, "sh", *COMMAND, *arguments]
            )
        self.shown = b""

    def sees(self, pattern):
        while not re.search(pattern, self.shown):
            self.shown += os.read(self.terminal, 1000)

    def types(self, line):
        self.shown = b""
        os.write(self.terminal, line)

    def shows_what_is_typed(self):
        def echoes():
            return termios.tcgetattr(self.terminal)[3] & termios.ECHO

        return until(echoes, "what is typed is shown")

    def end(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.fixture
def typist():
    begun = []

    def begin(*arguments):
        begun.append(Typist(*arguments))
        return begun[-1]

    yield begin
    for item in begun:
        item.end()


def process_of(word, name):
    """Return the PID of the only Python process with both arguments."""
    (pid,) = [pid for pid in processes_with(word) if name in python(pid)]
    return pid


def python(pid):
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return words if words[0] == sys.executable else []


def test_tool_never_has_the_passphrase(safe, typist):
    person = typist("passwd", safe.name)
    person.sees(rb"Passphrase of the pool [^:]*: \Z")
    person.types(PASSPHRASE + b"\n")
    person.sees(rb"New passphrase of the pool [^:]*: \Z")
    assert PASSPHRASE not in person.shown
    person.types(NEW + b"\n")
    person.sees(rb"Repeat the new passphrase: \Z")
    tool = process_of(b"tools.main", safe.name)
    seen = memory(tool)
    assert safe.container.encode() in seen
    assert PASSPHRASE not in seen and NEW not in seen
    # the keyholder wiped the first, and has the second still
    holder = process_of(KEYHOLDER, safe.container)
    seen = memory(holder)
    assert PASSPHRASE not in seen and NEW in seen
    person.types(NEW + b"\n")
    person.sees(rb"status 0")
    assert b"was changed" in person.shown
    assert NEW not in person.shown
    assert person.shows_what_is_typed()
    assert not list(processes_with(KEYHOLDER))


@pytest.mark.parametrize("how", ["interrupted", "keyholder", "tool"])
def test_echo_is_restored_after_any_exit(safe, typist, how):
    person = typist("unlock", safe.name)
    person.sees(rb"Passphrase of the pool [^:]*: \Z")
    assert not termios.tcgetattr(person.terminal)[3] & termios.ECHO
    if how == "interrupted":
        person.types(b"half of i\x03")
        person.sees(rb"qvm-zfs unlock: interrupted\r\nstatus 1")
    elif how == "keyholder":
        os.kill(process_of(KEYHOLDER, safe.container), signal.SIGKILL)
        person.sees(rb"status 1")
    else:
        os.kill(process_of(b"tools.main", safe.name), signal.SIGKILL)
        person.sees(rb"status 137")
    assert person.shows_what_is_typed()
    assert b"Traceback" not in person.shown
    until(lambda: not list(processes_with(KEYHOLDER)), "it has ended")
    assert safe.is_locked()


def test_status_reports_whether_freed_memory_is_overwritten(safe):
    said = sh(*COMMAND, "status", safe.name)
    report = json.loads(sh(*COMMAND, "status", "--json", safe.name))
    overwritten = "init_on_free=1" in Path("/proc/cmdline").read_text()
    assert report["init_on_free"] is overwritten
    assert (freed_memory.NOT_OVERWRITTEN in said) is not overwritten
