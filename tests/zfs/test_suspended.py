# SPDX-License-Identifier: BSD-2-Clause
"""A disk that does not answer delays its own zpool only."""

import asyncio
import threading
import time

import pytest

from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import channel, lzc, threads

from ..support.background import settled
from ..support.lab import Lab, configure
from ..support.mapped import Mapped
from ..support.operations import begin, end
from ..support.pulse import Bare, Pulse
from ..support.tool import status
from ..support.zpools import sh, write

pytestmark = pytest.mark.side_a

#: more calls than a zpool has threads
MANY = threads.WORKERS + 4
#: seconds; the event loop's largest gap
GAP = 0.25


@pytest.fixture
def stuck(monkeypatch):
    monkeypatch.setattr(threads, "DEADLINE", 0.2)
    disk = Mapped("stuck")
    yield disk
    disk.end()
    common.QUBES_XML.unlink(missing_ok=True)


def questions(pool, *volumes):
    """Return functions for all values that qubesd reads repeatedly."""
    found = {
        "size": lambda: pool.size,
        "usage": lambda: pool.usage,
        "details": lambda: pool.usage_details,
        "config": lambda: pool.config,
        "listed": lambda: sorted(item.vid for item in pool.list_volumes()),
    }
    for volume in volumes:
        found |= {
            (volume.vid, "path"): lambda v=volume: v.path,
            (volume.vid, "size"): lambda v=volume: v.size,
            (volume.vid, "usage"): lambda v=volume: v.usage,
            (volume.vid, "revisions"): lambda v=volume: v.revisions,
            (volume.vid, "outdated"): volume.is_outdated,
            (volume.vid, "dirty"): volume.is_dirty,
            (volume.vid, "config"): lambda v=volume: v.config,
            (volume.vid, "object"): lambda v=volume: pool.get_volume(v.vid),
        }
    return found


def looked_at(pool, *volumes):
    return {name: ask() for name, ask in questions(pool, *volumes).items()}


async def poll(*polled):
    """Read each value in its own turn of the loop, as clients of qubesd do."""
    found = []
    for _ in range(3):
        found = []
        for pool, volumes in polled:
            answers = {}
            for name, ask in questions(pool, *volumes).items():
                answers[name] = ask()
                await asyncio.sleep(0.001)
            found.append(answers)
    return found


def fresh_answers(*volumes):
    """Expire cached values of halted volumes, so that ZFS is called again."""
    for volume in volumes:
        volume.view.expire()


class Hanging:
    """More operations that wait for the zpool than it has threads.

    The first is a change that must read from the disk. Meanwhile ZFS blocks
    every access to the zpool's datasets.
    """

    def __init__(self, lab, volume):
        dataset = lab.pool.qubes_root
        self.tasks = [
            asyncio.ensure_future(work)
            for work in (
                volume.generations.commit(3),
                *(lzc.sync(dataset) for _ in range(MANY)),
                *(
                    channel.read("key", dataset, {"dataset": dataset})
                    for _ in range(MANY)
                ),
                settled(volume.start()),
            )
        ]

    @property
    def pending(self):
        return [task for task in self.tasks if not task.done()]


def askers():
    """Return the threads that make synchronous queries of the zpool."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("zfs stuck ask")
    ]


def test_silent_zpool_delays_no_other_pool(lab, stuck):
    far = Lab("stuck")
    volume = far.private("far", b"one", revisions_to_keep=3)
    far.session(volume, b"two")
    app = far.clone_of(far.private("tmpl", b"v1", name="root"))
    near = lab.private("near", b"here")
    unread = far.again(volume)
    # the pool's object for this vid again
    far.pool._volumes[volume.vid] = volume
    sh("zpool", "sync", "stuck")
    before = looked_at(far.pool, volume, app)
    assert list(volume.revisions) == ["r1", "r2"] and volume.usage > 0
    configure(far.pool.config)
    stuck.import_again()
    fresh_answers(volume, app)
    pulse, stop = Pulse(), threading.Event()

    async def all_of_it():
        # otherwise the test would never end if one zpool delayed another
        asyncio.get_running_loop().call_later(240, stuck.go_on)
        beat = asyncio.ensure_future(pulse.beat(stop))
        hanging = Hanging(far, volume)
        await asyncio.sleep(0.5)
        polling = asyncio.ensure_future(
            poll((far.pool, (volume, app)), (lab.pool, (near,)))
        )
        telling = asyncio.ensure_future(asyncio.to_thread(status, far))
        started = time.monotonic()
        for _ in range(2):
            await begin(near)
            await asyncio.to_thread(write, near.path, b"more")
            await end(near)
        lasted = time.monotonic() - started
        far_now, _ = await polling
        found = await telling
        why = list(unread.revisions)
        stop.set()
        await beat
        assert len(hanging.pending) > MANY
        return far_now, why, lasted, found["state"], hanging

    async def with_the_disk_back():
        stuck.hang()
        try:
            found = await all_of_it()
        finally:
            await asyncio.to_thread(stuck.go_on)
        await asyncio.gather(*found[-1].tasks)
        return found

    with Bare() as bare:
        far_now, why, lasted, state, _ = asyncio.run(with_the_disk_back())
    print(f"the driver's loop: {pulse}")
    print(f"a bare loop: {bare.pulse}")
    print(f"two sessions in the healthy pool: {lasted:.1f} s")
    # the emulated processor sometimes stops both loops
    worst, bare_worst = (sorted(x.gaps)[-3] for x in (pulse, bare.pulse))
    assert worst < GAP + bare_worst
    # a query without a deadline would block the loop once, until the disk is
    # back: the driver makes no other query of the zpool meanwhile
    assert max(pulse.gaps) < 5 + max(bare.pulse.gaps)
    assert far_now == before
    assert len(why) == 1 and why[0].startswith("unknown:_the_zpool_stuck_does_")
    assert state == "silent"
    assert len(askers()) <= 1
    # the values are current again
    far.stop(volume)
    far.session(volume, b"three")
    assert list(volume.revisions) == ["r1", "r2", "r3"]
    assert list(unread.revisions) == ["r1", "r2", "r3"]
    assert lab.content(near) == b"more"
