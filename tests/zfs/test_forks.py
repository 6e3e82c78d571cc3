# SPDX-License-Identifier: BSD-2-Clause
"""No operation starts a process; the kernel counts them."""

import os
import time

import pytest

from ..support.counting import Forks
from ..support.zpools import write


def test_fork_counter_counts_forks():
    with Forks() as forks:
        for _ in range(3):
            if os.fork() == 0:
                os._exit(0)
            os.wait()
    assert forks.count == 3


def test_no_operation_starts_a_process(lab):
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
def test_operations_do_not_block_the_event_loop(lab, count):
    """Operations run in threads: the event loop runs while they wait for ZFS."""
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
    # a loop that an operation blocks would tick only a few times
    assert len(gaps) > 20 * spent
