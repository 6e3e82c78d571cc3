# SPDX-License-Identifier: BSD-2-Clause
"""Concurrent operations: each result fits some order, or is a refusal.

ZFS_TESTS_LONG=1 runs more; ZFS_TESTS_SEED repeats a run.
"""

import asyncio
import os
import random
import time

import pytest
from qubes.exc import StoragePoolException

from ..support.operations import begin, end
from ..support.zpools import MIB, read, write

pytestmark = pytest.mark.side_a

LONG = "ZFS_TESTS_LONG" in os.environ
SEED = int(os.environ.get("ZFS_TESTS_SEED", time.time_ns() if LONG else 1))
ROUNDS = 12 if LONG else 2
QUBES = 16


async def quietly(operation):
    """Return the result of *operation*, or its StoragePoolException."""
    try:
        return await operation
    except StoragePoolException as exc:
        assert "\n" not in str(exc)
        return exc


async def at_once(*verbs):
    return await asyncio.gather(*map(quietly, verbs))


def refused(result):
    return isinstance(result, StoragePoolException)


async def put(path, content):
    await asyncio.to_thread(write, path, content)


async def get(path, length=16):
    return await asyncio.to_thread(read, path, length)


async def content(volume):
    path = await volume.export()
    try:
        return await get(path)
    finally:
        await volume.export_end(path)


@pytest.fixture
def tidy(lab):
    """Check afterwards that nothing is reserved and all garbage is collected."""
    yield lab
    store = lab.pool.store
    assert store.reserved == set() and store.exports == set()
    volumes = lab.pool.list_volumes()
    lab.run(_remove_all(volumes))
    assert lab.sweep_until(lambda: lab.datasets() == ["vm"]), lab.datasets()


async def _remove_all(volumes):
    # the volumes may be clones of each other
    await asyncio.gather(*(volume.remove() for volume in volumes))


# --- two operations in random order


@pytest.fixture(params=range(ROUNDS))
def later(request):
    """Return the delay of the second operation, in seconds.

    It is at most about as long as one operation takes.
    """
    dice = random.Random(f"{SEED} {request.node.name}")
    seconds = dice.choice([0, 0.01, 0.05, 0.1, 0.2, 0.4])
    print(f"seed {SEED}: {seconds} s later")
    return seconds


async def after(seconds, operation):
    await asyncio.sleep(seconds)
    return await operation


def test_app_qubes_starting_during_a_template_stop_show_one_state(tidy, later):
    """Each app qube has the complete old or new content."""
    lab, big = tidy, 64 << 10
    root = lab.private("tmpl", b"o" * big, name="root", revisions_to_keep=0)
    lab.start(root)
    write(root.path, b"n" * big)
    apps = [lab.clone_of(root, f"app{n}") for n in range(6)]

    async def race():
        results = await at_once(
            after(later, end(root)),
            *(after(n * 0.05, begin(app)) for n, app in enumerate(apps)),
        )
        assert not any(map(refused, results))
        shown = [await get(app.path, big) for app in apps]
        assert {bytes(text) for text in shown} <= {b"o" * big, b"n" * big}
        assert await content(root) == b"n" * 16
        await asyncio.gather(*map(end, apps))

    asyncio.run(race())
    assert root.revisions == {}


def test_export_during_a_revert_has_the_old_or_new_content(tidy, later):
    volume = tidy.private(content=b"one", revisions_to_keep=9)
    tidy.session(volume, b"two")

    async def race():
        path, *rest = await at_once(
            volume.export(), after(later, volume.revert("r2")), volume.export()
        )
        assert not any(map(refused, [path, *rest]))
        for exported in path, rest[1]:
            assert await get(exported) in (b"one", b"two")
            await volume.export_end(exported)
        assert await content(volume) == b"one"

    asyncio.run(race())


def test_concurrent_reverts_keep_all_revisions(tidy, later):
    volume = tidy.private(content=b"one", revisions_to_keep=9)
    tidy.session(volume, b"two")
    tidy.session(volume, b"three")

    async def race():
        results = await at_once(
            volume.revert("r2"), after(later, volume.revert("r3"))
        )
        assert not any(map(refused, results))
        assert await content(volume) == b"two"

    asyncio.run(race())
    assert set(volume.revisions) > {"r1", "r2", "r3"}


def test_start_during_a_revert_keeps_its_content(tidy, later):
    """qubesd reports a qube as running only after all its volumes started."""
    volume = tidy.private(content=b"one", revisions_to_keep=9)
    tidy.session(volume, b"two")

    async def race():
        await at_once(after(later, volume.revert("r2")), begin(volume))
        started = await get(volume.path)
        assert started in (b"one", b"two")
        await end(volume)
        assert await content(volume) == started

    asyncio.run(race())


async def import_file(volume, text, pause=0.0):
    """Import a file as the service of qubesd does."""
    path = await volume.import_data(MIB)
    try:
        await asyncio.sleep(pause)
        await put(path, text)
    except OSError as exc:
        # the driver replaced this import: dd fails, so the client fails
        await volume.import_data_end(False)
        raise StoragePoolException("Data import failed") from exc
    await asyncio.sleep(pause)
    await volume.import_data_end(True)


def test_concurrent_imports_leave_one_content(tidy, later):
    volume = tidy.private(content=b"old", revisions_to_keep=9)

    async def race():
        results = await at_once(
            import_file(volume, b"first", later / 4),
            after(later / 2, import_file(volume, b"second", later / 4)),
        )
        assert await content(volume) in (
            {b"old"} if all(map(refused, results)) else {b"first", b"second"}
        )
        await quietly(volume.import_data_end(False))

    asyncio.run(race())


def test_import_data_end_of_a_replaced_import_is_refused(tidy):
    """Otherwise a device that is still written would become the volume."""
    volume = tidy.private(content=b"old")

    async def race():
        await put(await volume.import_data(MIB), b"first")
        await volume.import_data(MIB)
        # qubesd runs each call of a client in its own task
        late = asyncio.create_task(volume.import_data_end(True))
        with pytest.raises(StoragePoolException, match="another import"):
            await late
        assert await content(volume) == b"old"

        await put(await volume.import_data(MIB), b"first")
        path = await volume.import_data(MIB)
        with open(path, "r+b"):
            with pytest.raises(
                StoragePoolException, match="an import into this volume"
            ):
                await volume.import_data_end(True)
            await volume.import_data_end(False)
        await put(path, b"second")
        await volume.import_data_end(True)
        assert await content(volume) == b"second"

    asyncio.run(race())


def test_import_data_during_import_volume_leaves_one_content(tidy, later):
    volume = tidy.private(content=b"old", revisions_to_keep=9)
    source = tidy.private("source", b"source")

    async def race():
        data, copy = await at_once(
            import_file(volume, b"data", later / 2),
            after(later, volume.import_volume(source)),
        )
        legal = {b"old"} if refused(data) and refused(copy) else set()
        legal |= set() if refused(data) else {b"data"}
        legal |= set() if refused(copy) else {b"source"}
        assert await content(volume) in legal
        await volume.import_data_end(False)

    asyncio.run(race())


def test_clone_during_removal_of_its_source_is_complete_or_refused(tidy, later):
    source = tidy.private("source", b"source")
    targets = [tidy.private(f"t{n}", b"old") for n in range(3)]

    async def race():
        results = await at_once(
            after(later, source.remove()),
            *(target.import_volume(source) for target in targets),
        )
        assert not refused(results[0])
        for target, result in zip(targets, results[1:], strict=True):
            expected = b"old" if refused(result) else b"source"
            assert await content(target) == expected

    asyncio.run(race())


def test_export_during_a_removal_is_complete_or_refused(tidy, later):
    volume = tidy.private(content=b"data")

    async def race():
        path, gone = await at_once(
            volume.export(), after(later, volume.remove())
        )
        assert not refused(gone)
        if not refused(path):
            assert await get(path) == b"data"
            await volume.export_end(path)

    asyncio.run(race())
    assert tidy.pool.list_volumes() == []


def test_remove_destroys_an_unfinished_import(tidy):
    """The client died; the removal destroys its device."""
    volume = tidy.private(content=b"data")
    tidy.run(volume.import_data(MIB))
    tidy.run(volume.remove())
    assert tidy.sweep_until(lambda: tidy.datasets() == ["vm"])


def test_export_during_a_resize_has_the_old_or_new_size(tidy, later):
    volume = tidy.private(content=b"data", revisions_to_keep=9)

    async def race():
        path, done = await at_once(
            volume.export(), after(later, volume.resize(8 * MIB))
        )
        assert not refused(path) and not refused(done)
        with open(path, "rb") as device:
            assert device.seek(0, os.SEEK_END) in (4 * MIB, 8 * MIB)
        assert await get(path) == b"data"
        await volume.export_end(path)

    asyncio.run(race())
    assert volume.size == 8 * MIB


# --- sixteen qubes


class Crowd:
    """Qubes that run random operations concurrently."""

    def __init__(self, lab, seed):
        self.lab, self.seed = lab, seed
        self.root = lab.private("tmpl", b"v0", name="root")
        self.common = lab.private("common", b"common")
        self.versions = 0
        self.done = {}

    def count(self, action):
        self.done[action] = self.done.get(action, 0) + 1

    async def template(self, until):
        """Update the template until the event is set."""
        while not until.is_set():
            self.versions += 1
            await begin(self.root)
            await put(self.root.path, b"v%d" % self.versions)
            await end(self.root)
            await asyncio.sleep(0.1)

    async def qube(self, number):
        dice = random.Random(f"{self.seed} {number}")
        name = f"q{number}"
        private = self.lab.volume(name, save_on_stop=True)
        root = self.lab.clone_of(self.root, name)
        volatile = self.lab.volatile(name)
        await asyncio.gather(*(v.create() for v in (private, root, volatile)))
        expected = b""
        steps = ["export", "clone", "revert", "cancel"]
        for step, action in enumerate(["session", *dice.sample(steps, 2)]):
            self.count(action)
            mine = b"%d-%d" % (number, step)
            if action == "session":
                expected = await self.session(private, root, volatile, mine)
            elif action == "export":
                assert await content(private) == expected
            elif action == "clone":
                await private.import_volume(self.common)
                expected = b"common"
            elif action == "revert":
                if private.revisions:
                    await private.revert()
                    expected = await content(private)
            else:
                await self.cancelled(private, dice)
                now = await content(private)
                assert now in (expected, b"common")
                expected = now
        assert await content(private) == expected
        await asyncio.gather(*(v.remove() for v in (private, root, volatile)))

    async def session(self, private, root, volatile, mine):
        started = (private, root, volatile)
        await asyncio.gather(*map(begin, started))
        shown = await get(root.path)
        assert shown in {b"v%d" % n for n in range(self.versions + 1)}
        assert await get(volatile.path) == b""
        await put(private.path, mine)
        await asyncio.gather(*map(end, started))
        return mine

    async def cancelled(self, private, dice):
        task = asyncio.ensure_future(private.import_volume(self.common))
        await asyncio.sleep(dice.choice([0, 0.02, 0.1, 0.3]))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def live(self):
        until = asyncio.Event()
        template = asyncio.ensure_future(self.template(until))
        try:
            await asyncio.gather(*map(self.qube, range(QUBES)))
        finally:
            until.set()
            await template


@pytest.mark.parametrize("round_", range(ROUNDS // 2))
def test_sixteen_qubes_run_random_operations_at_once(tidy, patience, round_):
    print(f"seed {SEED}, round {round_}")
    crowd = Crowd(tidy, f"{SEED} {round_}")
    asyncio.run(crowd.live())
    print(f"{crowd.done}, {crowd.versions} versions of the template")
    assert tidy.sweep_until(
        lambda: {name.split("/")[1] for name in tidy.datasets("volume")}
        == {"tmpl", "common"}
    )
