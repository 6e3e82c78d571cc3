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

#: seconds between transaction groups that nobody waits for: none comes while
#: something is counted
TXG_TIMEOUT = Path("/sys/module/zfs/parameters/zfs_txg_timeout")


def events_of_processes() -> socket.socket:
    """Return a socket from which events of all processes can be read.

    Byte 36 of a message is the kind of event; its data begin at byte 52.
    """
    told = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR
    )
    # events of all processes come here, and none may be lost
    told.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVED)
    told.bind((0, CN_IDX_PROC))
    body = struct.pack("=IIIIHHI", CN_IDX_PROC, 1, 0, 0, 4, 0, 1)
    told.send(
        struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body
    )
    time.sleep(0.1)
    return told


class Forks:
    """Count the child processes that this process and its threads start.

    From the kernel's process connector; a new thread is no new process.

    :ivar count: known when the block is left
    """

    count: int | None = None

    def __enter__(self) -> "Forks":
        self.socket = events_of_processes()
        self.socket.settimeout(30)
        return self

    def __exit__(self, *_: object) -> None:
        """All before a last child is counted: the kernel starts threads of
        its own all the time."""
        self.count = 0
        with subprocess.Popen(["true"]) as last:
            while (child := self._next_child()) != last.pid:
                self.count += child is not None
        self.socket.close()

    def _next_child(self) -> int | None:
        """Of the next event of any process, if that is a new child of ours.

        :raises TimeoutError: if there is none
        """
        message = self.socket.recv(4096)
        (what,) = struct.unpack_from("=I", message, 36)
        if what != PROC_EVENT_FORK:
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
    """Calls of libzfs_core, each one ioctl on /dev/zfs: what was called, of
    channel programs the names, with a + between those that ran as one.

    :param spans: begin and end of each are added to it
    """
    made: list[str] = []
    call, run = lzc.call, zcp.run

    def counted(what: str, subject: str, *args: Any) -> Any:
        if not what.startswith("channel_program"):
            made.append(what)
        begin = time.monotonic()
        try:
            return call(what, subject, *args)
        finally:
            if spans is not None:
                spans.append((begin, time.monotonic()))

    def counted_run(programs: Any, sync: bool) -> Any:
        made.append("+".join(sorted(each.name for each in programs)))
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
    """Let no transaction group end but those that a process waits for."""
    before = TXG_TIMEOUT.read_text()
    TXG_TIMEOUT.write_text("3600")
    try:
        yield
    finally:
        TXG_TIMEOUT.write_text(before)


def settled(zpool: str) -> int:
    """As txg(), once nothing goes on any more: ZFS frees what was destroyed
    over some transaction groups afterwards."""
    last, since = txg(zpool), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        now = txg(zpool)
        if now != last:
            last, since = now, time.monotonic()
    return last


def now(function: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """Return a coroutine function for a synchronous property."""

    async def verb() -> object:
        return function()

    return verb


def rest(zpool: str | None) -> None:
    """Wait until udev and ZFS have nothing left to do."""
    subprocess.run(["udevadm", "settle"], check=True)
    if zpool:
        settled(zpool)


@dataclass
class Cost:
    """Of what was done meanwhile; known when it is over.

    :ivar seconds: it took
    :ivar in_calls: seconds of these in which ZFS was called
    :ivar calls: of libzfs_core, sorted
    :ivar txgs: transaction groups that ended; None: there is no zpool
    """

    seconds: float = 0.0
    in_calls: float = 0.0
    calls: list[str] = field(default_factory=list)
    txgs: int | None = None


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return how long at least one of the spans lasted."""
    covered, reached = 0.0, 0.0
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


@contextmanager
def cost(zpool: str | None) -> Iterator[Cost]:
    """Count the cost of the block; call it after rest(), within quiet()."""
    spent, spans = Cost(), list[tuple[float, float]]()
    with calls(spans) as made:
        before = txg(zpool) if zpool else 0
        begin = time.monotonic()
        yield spent
        spent.seconds = time.monotonic() - begin
        if zpool:
            spent.txgs = txg(zpool) - before
    spent.calls = sorted(made)
    spent.in_calls = _covered(spans)
