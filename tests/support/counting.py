# SPDX-License-Identifier: BSD-2-Clause
"""The cost of an operation: processes, calls of ZFS, transaction groups.

Counts are the same on a slow machine and a fast one.
"""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qubes_storage_zfs.zfs import lzc, zcp

NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
PROC_EVENT_FORK = 1
PROC_EVENT_EXEC = 2
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
RECEIVED = 64 << 20  # bytes

#: Seconds between transaction groups that no process requests. quiet() sets a
#: time so long that none of these finishes while a cost is counted.
TXG_TIMEOUT = Path("/sys/module/zfs/parameters/zfs_txg_timeout")


def events_of_processes() -> socket.socket:
    """Return a socket from which events of all processes can be read.

    Byte 36 of a message is the kind of event; its data start at byte 52.
    """
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR
    )
    # the socket receives events of all processes, and none may be lost
    events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVED)
    events.bind((0, CN_IDX_PROC))
    body = struct.pack("=IIIIHHI", CN_IDX_PROC, 1, 0, 0, 4, 0, 1)
    events.send(
        struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body
    )
    time.sleep(0.1)
    return events


class Forks:
    """Count the child processes that this process and its threads start.

    The kernel's process connector reports them. Threads do not count.

    :ivar count: set when the block is left
    """

    count: int | None = None

    def __enter__(self) -> "Forks":
        self.socket = events_of_processes()
        self.socket.settimeout(30)
        return self

    def __exit__(self, *_: object) -> None:
        """Count until the event of one last child arrives.

        Other events arrive all the time, because the kernel starts threads.
        """
        self.count = 0
        with subprocess.Popen(["true"]) as last:
            while (child := self._next_child()) != last.pid:
                self.count += child is not None
        self.socket.close()

    def _next_child(self) -> int | None:
        """Return the child in the next event, if it is a new one of ours.

        :raises TimeoutError: if no event arrives
        """
        message = self.socket.recv(4096)
        (kind_of_event,) = struct.unpack_from("=I", message, 36)
        if kind_of_event != PROC_EVENT_FORK:
            return None
        fields = struct.unpack_from("=IIII", message, 52)
        parent_tgid, child_pid, child_tgid = fields[1:]
        if parent_tgid == os.getpid() and child_pid == child_tgid:
            return int(child_pid)
        return None


@contextmanager
def calls(
    spans: list[tuple[float, float]] | None = None,
) -> Iterator[list[str]]:
    """Record the calls of libzfs_core in this block.

    Each call is one ioctl on /dev/zfs. A channel program is recorded by its
    name; the names of a batch are joined by +.

    :param spans: a list that gets the start and end of each call
    """
    made: list[str] = []
    call, run = lzc.call, zcp.run

    def counted(name: str, subject: str, *args: Any) -> Any:
        if not name.startswith("channel_program"):
            made.append(name)
        start = time.monotonic()
        try:
            return call(name, subject, *args)
        finally:
            if spans is not None:
                spans.append((start, time.monotonic()))

    def counted_run(programs: Any, sync: bool) -> Any:
        made.append("+".join(sorted(program.name for program in programs)))
        return run(programs, sync)

    lzc.call, zcp.run = counted, counted_run
    try:
        yield made
    finally:
        lzc.call, zcp.run = call, run


def txg(zpool: str) -> int:
    """Return the number of the open transaction group."""
    lines = Path(f"/proc/spl/kstat/zfs/{zpool}/txgs").read_text().split("\n")
    return int([line for line in lines if line.strip()][-1].split()[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Let ZFS finish only the transaction groups that a process waits for."""
    before = TXG_TIMEOUT.read_text()
    TXG_TIMEOUT.write_text("3600")
    try:
        yield
    finally:
        TXG_TIMEOUT.write_text(before)


def settled(zpool: str) -> int:
    """Wait until no transaction group finishes any more; return as txg().

    After a destruction, ZFS frees the space in several transaction groups.
    """
    last, since = txg(zpool), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        now = txg(zpool)
        if now != last:
            last, since = now, time.monotonic()
    return last


def now(function: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """Return a coroutine function for a synchronous property."""

    async def operation() -> object:
        return function()

    return operation


def rest(zpool: str | None) -> None:
    """Wait until udev and ZFS have nothing left to do."""
    subprocess.run(["udevadm", "settle"], check=True)
    if zpool:
        settled(zpool)


@dataclass
class Cost:
    """The cost of a block; complete when the block is left.

    :ivar seconds: the time of the block
    :ivar in_calls: seconds of these in calls of ZFS
    :ivar calls: calls of libzfs_core, sorted; see calls()
    :ivar txgs: transaction groups that finished; None if there is no zpool
    """

    seconds: float = 0.0
    in_calls: float = 0.0
    calls: list[str] = field(default_factory=list)
    txgs: int | None = None


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return how long at least one of the spans lasted."""
    covered, reached = 0.0, 0.0
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


@contextmanager
def cost(zpool: str | None) -> Iterator[Cost]:
    """Count the cost of the block; call it after rest(), within quiet()."""
    spent, spans = Cost(), list[tuple[float, float]]()
    with calls(spans) as made:
        before = txg(zpool) if zpool else 0
        start = time.monotonic()
        yield spent
        spent.seconds = time.monotonic() - start
        if zpool:
            spent.txgs = txg(zpool) - before
    spent.calls = sorted(made)
    spent.in_calls = _covered(spans)
