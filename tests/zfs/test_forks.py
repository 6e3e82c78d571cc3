"""No process is started on the hot path, counted by the kernel."""

import os
import socket
import struct
import time

import pytest

from .conftest import write

NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
PROC_EVENT_FORK = 1


class Forks:
    """Counts children that this process (its threads included) starts.

    From the kernel's process connector; a new thread is no new process.
    """

    def __enter__(self):
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR
        )
        self.socket.bind((0, CN_IDX_PROC))
        self.socket.settimeout(0.5)
        body = struct.pack("=IIIIHHI", CN_IDX_PROC, 1, 0, 0, 4, 0, 1)
        self.socket.send(
            struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body
        )
        time.sleep(0.1)
        self.count = None
        return self

    def __exit__(self, *_):
        self.count = 0
        while True:
            try:
                message = self.socket.recv(4096)
            except TimeoutError:
                break
            (what,) = struct.unpack_from("=I", message, 36)
            if what == PROC_EVENT_FORK:
                fields = struct.unpack_from("=IIII", message, 52)
                parent_tgid, child_pid, child_tgid = fields[1:]
                if parent_tgid == os.getpid() and child_pid == child_tgid:
                    self.count += 1
        self.socket.close()


def test_the_counter_counts():
    with Forks() as forks:
        for _ in range(3):
            if os.fork() == 0:
                os._exit(0)
            os.wait()
    assert forks.count == 3


def test_no_process_is_started_on_the_hot_path(lab):
    root = lab.private("tmpl", b"v1", name="root")
    private = lab.private("app", b"data", revisions_to_keep=3)
    app, volatile = lab.clone_of(root), lab.volatile("app")
    copy = lab.private("copy")
    counts = {}

    def counted(name, *actions):
        with Forks() as forks:
            for action in actions:
                action()
        counts[name] = forks.count

    counted("start", lambda: lab.start(app, volatile, private))
    write(private.path, b"more")
    counted("stop", lambda: lab.stop(app, volatile, private))
    counted("revert", lambda: lab.run(private.revert()))
    counted("clone", lambda: lab.run(copy.import_volume(private)))
    counted("export", lambda: lab.content(private))
    counted("revisions", lambda: private.revisions)
    counted("usage", lambda: (private.usage, lab.pool.usage, lab.pool.size))
    counted("create", lambda: lab.private("new"))
    counted("remove", lambda: lab.run(copy.remove()))
    assert counts == dict.fromkeys(counts, 0)


@pytest.mark.parametrize("count", [3])
def test_event_loop_is_not_held(lab, count):
    """Verbs run in threads: the loop ticks on while they wait for ZFS."""
    import asyncio

    private = [lab.private(f"q{n}", b"x") for n in range(count)]
    gaps = []

    async def ticking(done):
        last = time.monotonic()
        while not done.is_set():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async def work():
        done = asyncio.Event()
        ticker = asyncio.create_task(ticking(done))
        begin = time.monotonic()
        await asyncio.gather(*(v.start() for v in private))
        await asyncio.gather(*(v.stop() for v in private))
        spent = time.monotonic() - begin
        done.set()
        await ticker
        return spent

    spent = asyncio.run(work())
    # held for one verb it would tick a handful of times in all
    assert len(gaps) > 20 * spent
