# SPDX-License-Identifier: BSD-2-Clause
"""Record the arguments and environment of every program that starts.

    python -m tests.support.programs

The kernel reports each exec before the program's first instruction.  This
process is in real time, so on one processor it looks before that instruction,
and on several long before the program can end.  It says "ready", and when its
standard input ends what it saw, and how many programs were gone too soon.
"""

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator

from .counting import PROC_EVENT_EXEC, events_of_processes


def look(pid):
    """Return the arguments and environment of a process, as bytes."""
    found = b""
    for kind in "cmdline", "environ":
        with open(f"/proc/{pid}/{kind}", "rb") as file:
            found += file.read()
    return found


def main():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    events = events_of_processes()
    poll = select.poll()
    for file in events, sys.stdin:
        poll.register(file, select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    seen, missed = [], 0
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if events.fileno() in ready:
            message = events.recv(4096)
            (what,) = struct.unpack_from("=I", message, 36)
            if what == PROC_EVENT_EXEC:
                (pid,) = struct.unpack_from("=I", message, 52)
                found = b""
                with contextlib.suppress(OSError):
                    found = look(pid)
                missed += not found
                seen.append(found.decode("latin1"))
        elif sys.stdin.fileno() in ready:
            break
    json.dump({"seen": seen, "missed": missed}, sys.stdout)


class Programs:
    """The programs that were recorded.

    :ivar seen: arguments and environment of each program, as bytes
    :ivar missed: how many were gone before they could be looked at
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.missed = 0


@contextlib.contextmanager
def programs() -> Iterator[Programs]:
    """Record the programs that start inside; complete when it is left."""
    found = Programs()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.programs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield found
        finally:
            process.stdin.close()
            told = json.load(process.stdout)
    found.seen = [words.encode("latin1") for words in told["seen"]]
    found.missed = told["missed"]


if __name__ == "__main__":
    main()
