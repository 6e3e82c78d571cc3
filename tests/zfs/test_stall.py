# SPDX-License-Identifier: BSD-2-Clause
"""qubesd has one event loop for all qubes: no operation may block it.

Each measurement runs at the same time as a bare loop in another thread of the
process. Both share the machine, the interpreter lock and the driver's threads.

The tests count the calls of ZFS and of the kernel in the loop's thread that may
wait, and measure the processor time of each callback. They only print the delay
of the loop, because an emulated machine delays both threads.
"""

import asyncio
import asyncio.events
import collections
import sys
import threading
import time

import pytest

from qubes_storage_zfs.driver import transfer
from qubes_storage_zfs.zfs import lzc

from ..support.operations import never
from ..support.pulse import QUBES, Bare, Pulse
from ..support.zpools import write

pytestmark = pytest.mark.side_b

#: seconds of processor time; an operation that blocks the loop does so for
#: each qube, a single slow callback does not
LIMIT = 0.020
#: prefixes of audit events of calls that may wait for a device
MAY_WAIT = ("open", "fcntl.", "subprocess.", "os.", "shutil.")
#: statistics that the kernel returns without waiting for a zpool
STATISTICS = "/proc/spl/kstat/zfs/"


class Processor:
    """The processor time that each callback took, for each thread."""

    def __init__(self, patch):
        self.spent = collections.defaultdict(list)
        run = asyncio.events.Handle._run

        def timed(handle):
            begin = time.thread_time()
            try:
                return run(handle)
            finally:
                self.spent[threading.get_ident()].append(
                    time.thread_time() - begin
                )

        patch.setattr(asyncio.events.Handle, "_run", timed)


class Listener:
    """Records calls that may wait, made in the thread that created it."""

    def __init__(self):
        self.thread, self.recorded = threading.get_ident(), None
        sys.addaudithook(self._heard)

    def _heard(self, event, args):
        if (
            self.recorded is not None
            and threading.get_ident() == self.thread
            and event.startswith(MAY_WAIT)
            and not str(args[0]).startswith(STATISTICS)
        ):
            self.recorded.append(f"{event} {args}")

    def __enter__(self):
        self.recorded = []
        return self.recorded

    def __exit__(self, *_):
        self.recorded = None


@pytest.fixture(scope="module")
def listener():
    """Create one audit hook; it cannot be removed and slows later tests down."""
    return Listener()


@pytest.fixture
def calls(monkeypatch):
    """Return the calls of ZFS, each with its thread."""
    recorded = []
    call = lzc.call

    def spy(what, subject, *args):
        recorded.append((f"{what} for {subject}", threading.get_ident()))
        return call(what, subject, *args)

    monkeypatch.setattr(lzc, "call", spy)
    return recorded


def in_loop(calls):
    """Return the calls made in the event loop's own thread."""
    mine = threading.get_ident()
    return [what for what, thread in calls if thread == mine]


async def path_of(volume):
    """Return the path; qubesd reads it in its loop, which is measured below."""
    return await asyncio.to_thread(lambda: volume.path)


async def life(lab, name, root, common):
    private = lab.volume(name, save_on_stop=True, revisions_to_keep=3)
    volumes = (private, lab.clone_of(root, name), lab.volatile(name))
    await asyncio.gather(*(volume.create() for volume in volumes))
    await asyncio.gather(*(volume.start() for volume in volumes))
    await asyncio.to_thread(write, await path_of(private), b"one")
    path = await private.export()
    await asyncio.gather(*(volume.stop() for volume in volumes))
    await private.export_end(path)
    await private.import_volume(common)
    await private.revert()
    await asyncio.gather(*(volume.remove() for volume in volumes))


class Measured:
    """Measures the driver's loop and a bare one while all qubes run once."""

    def __init__(self, lab, monkeypatch, prefix, root, common):
        self.pulse, stop = Pulse(), threading.Event()

        async def all_lives():
            beat = asyncio.ensure_future(self.pulse.beat(stop))
            names = [f"{prefix}{number}" for number in range(QUBES)]
            await asyncio.gather(
                *(life(lab, name, root, common) for name in names)
            )
            stop.set()
            await beat

        with monkeypatch.context() as patch, Bare() as bare:
            processor = Processor(patch)
            asyncio.run(all_lives())
        self.bare = bare.pulse
        self.spent = processor.spent[threading.get_ident()]
        self.bare_spent = processor.spent[bare.thread.ident]

    def __str__(self):
        spent, bare = (
            f"{_for_each_qube(times) * 1000:.1f} ms"
            for times in (self.spent, self.bare_spent)
        )
        return (
            f"the driver's loop: {self.pulse}\n"
            f"a bare loop: {self.bare}\n"
            f"processor time of the {QUBES}th longest callback: {spent} and"
            f" {bare}"
        )

    def is_good(self):
        bare = _for_each_qube(self.bare_spent)
        return _for_each_qube(self.spent) <= max(LIMIT, 2 * bare)


def _for_each_qube(times):
    """Return the longest time that occurs once for each qube."""
    return sorted(times)[-QUBES]


def test_no_operation_blocks_the_event_loop(
    lab, monkeypatch, patience, calls, listener
):
    root = lab.private("tmpl", b"v1", name="root")
    common = lab.private("common", b"common")
    calls.clear()
    with listener as may_wait:
        measured = Measured(lab, monkeypatch, "q", root, common)
    print(measured)
    assert calls and in_loop(calls) == []
    assert may_wait == []
    assert measured.is_good()


def test_listener_records_calls_of_its_own_thread(lab, tmp_path, listener):
    volume = lab.private()
    lab.start(volume)
    with listener as may_wait:
        with open(volume.path, "rb"):
            pass
        thread = threading.Thread(target=lambda: open(tmp_path / "x", "wb"))
        thread.start()
        thread.join()
    lab.stop(volume)
    assert [call.partition(" ")[0] for call in may_wait] == ["open"]


def test_copy_between_pools_does_not_call_zfs_in_the_loop(
    lab, monkeypatch, calls
):
    source, target = lab.private("a", b"data"), lab.private("b")
    monkeypatch.setattr(transfer, "is_clonable", never)
    calls.clear()
    lab.run(target.import_volume(source))
    assert calls and in_loop(calls) == []
    assert lab.content(target) == b"data"


def test_synchronous_properties_make_the_expected_calls(lab, calls):
    """The API is synchronous, so the loop waits while a thread calls ZFS.

    Each property makes one call, and none if its value cannot have changed.
    """
    root = lab.private("tmpl", b"v1", name="root")
    app = lab.clone_of(root)
    lab.start(app)
    for number in range(QUBES):
        lab.private(f"q{number}")
    for name, ask, times in [
        ("path", lambda: app.path, 0),
        ("path of a halted qube's volume", lambda: root.path, 1),
        ("the same again", lambda: root.path, 0),
        ("and its usage", lambda: root.usage, 0),
        ("usage", lambda: app.usage, 1),
        ("size", lambda: app.size, 0),
        ("revisions", lambda: root.revisions, 1),
        ("is_outdated", app.is_outdated, 1),
        ("config", lambda: root.config, 0),
        ("pool.usage_details", lambda: lab.pool.usage_details, 1),
        ("pool.get_volume", lambda: lab.pool.get_volume("tmpl/root"), 0),
        ("pool.list_volumes", lab.pool.list_volumes, 1),
    ]:
        calls.clear()
        begin, spent = time.perf_counter(), time.thread_time()
        ask()
        wall, spent = time.perf_counter() - begin, time.thread_time() - spent
        print(f"{name}: {wall * 1000:.1f} ms, {spent * 1000:.1f} ms of CPU")
        assert len(calls) == times and in_loop(calls) == [], name
    lab.stop(app)
