# SPDX-License-Identifier: BSD-2-Clause
"""Record the arguments and environment of every program that starts.

    python -m tests.support.programs

The kernel reports each exec before the program's first instruction. This
process has real-time priority. On one processor it reads the program's
arguments before that instruction; on several, long before the program can exit.
It prints "ready". When its standard input is closed, it prints the programs and
how many of them exited too early.
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


def read_process(pid):
    """Return the arguments and environment of a process, as bytes."""
    data = b""
    for kind in "cmdline", "environ":
        with open(f"/proc/{pid}/{kind}", "rb") as file:
            data += file.read()
    return data


def main():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    events = events_of_processes()
    poll = select.poll()
    for file in events, sys.stdin:
        poll.register(file, select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    seen, missed = [], 0
    while True:
        readable = {fd for fd, _ in poll.poll()}
        if events.fileno() in readable:
            message = events.recv(4096)
            (kind_of_event,) = struct.unpack_from("=I", message, 36)
            if kind_of_event == PROC_EVENT_EXEC:
                (pid,) = struct.unpack_from("=I", message, 52)
                data = b""
                with contextlib.suppress(OSError):
                    data = read_process(pid)
                missed += not data
                seen.append(data.decode("latin1"))
        elif sys.stdin.fileno() in readable:
            break
    json.dump({"seen": seen, "missed": missed}, sys.stdout)


class Programs:
    """The programs that were recorded.

    :ivar seen: arguments and environment of each program, as bytes
    :ivar missed: how many programs exited before they could be read
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.missed = 0


@contextlib.contextmanager
def programs() -> Iterator[Programs]:
    """Record the programs that start in this block."""
    recorded = Programs()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.programs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield recorded
        finally:
            process.stdin.close()
            report = json.load(process.stdout)
    recorded.seen = [words.encode("latin1") for words in report["seen"]]
    recorded.missed = report["missed"]


if __name__ == "__main__":
    main()
