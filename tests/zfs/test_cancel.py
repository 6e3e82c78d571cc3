# SPDX-License-Identifier: BSD-2-Clause
"""A client disconnects: cancel each operation at each point where it waits.

Each operation first runs to its end, which shows how often it waits. It then
runs once for each of these points and each way to cancel it there (fewer
without LONG), each time on a new volume. Afterwards the volume must be in the
state before the operation or in the state after it.
"""

import asyncio
import itertools
import os
from collections import Counter

import pytest

from qubes_storage_zfs.driver import transfer
from qubes_storage_zfs.zfs import devices

from ..support.background import afterwards
from ..support.lab import Lab
from ..support.operations import Cut, begin, end, never, seen
from ..support.zpools import MIB, read, write

pytestmark = pytest.mark.side_b

#: early: the awaited call is still running; late: the call is finished, but
#: the operation has not resumed; again: as early, and cancelled again every few
#: ms while the operation cleans up
WAYS = ("early", "late", "again")
#: try all ways at each wait, not one way at every other wait
LONG = "ZFS_TESTS_LONG" in os.environ
EVERY = 1 if LONG else 2
#: number of volumes tested at once; they share transaction groups
TOGETHER = 12


async def scribble(volume, content):
    """Write to a volume, and retry while its link is missing.

    udev removes a link for a while if its own program could not open the
    volume. This happens with so many volumes at once.
    """
    for _ in range(20):
        path = await devices.wait_for_link(volume.dataset)
        try:
            return await asyncio.to_thread(write, path, content)
        except FileNotFoundError:
            await asyncio.sleep(0.5)
    raise AssertionError(f"the link of {volume.vid} does not stay")


async def session(volume, content):
    await begin(volume)
    await scribble(volume, content)
    await end(volume)


class Private:
    """An operation on a persistent volume, and the steps around it."""

    def __init__(self, lab, number, sources):
        self.lab, self.sources = lab, sources
        self.volume = self.make(f"q{number}")
        self.path = None

    def make(self, qube):
        return self.lab.volume(qube, save_on_stop=True, revisions_to_keep=4)

    async def prepare(self):
        await self.volume.create()
        await session(self.volume, b"one")

    def verb(self):
        raise NotImplementedError

    async def finish(self, result):
        """Do what a client does after an operation that was not cancelled."""

    async def settle(self):
        """Do what qubesd does next with the volume of a halted qube."""
        await end(self.volume)
        return await seen(self.volume)

    async def go_on(self, outcome):
        """Check that the volume can be started and stopped."""
        if outcome is None:
            await self.volume.create()
        await begin(self.volume)
        content = (await seen(self.volume))[0]
        assert content == (outcome[0] if outcome else b"")
        await end(self.volume)

    def reserved(self):
        start = self.volume.where.dataset + "/"
        return [n for n in self.volume.store.reserved if n.startswith(start)]


class Create(Private):
    async def prepare(self):
        pass

    def verb(self):
        return self.volume.create()


class Start(Private):
    def verb(self):
        return self.volume.start()


class Stop(Private):
    async def prepare(self):
        await super().prepare()
        await begin(self.volume)
        await scribble(self.volume, b"two")

    def verb(self):
        return self.volume.stop()


class StopWithoutRevisions(Stop):
    def make(self, qube):
        return self.lab.volume(qube, save_on_stop=True, revisions_to_keep=-1)


class Export(Private):
    def verb(self):
        return self.volume.export()

    async def finish(self, path):
        assert await asyncio.to_thread(read, path) == b"one"
        await self.volume.export_end(path)


class ExportWithoutRevisions(Export):
    def make(self, qube):
        return self.lab.volume(qube, save_on_stop=True, revisions_to_keep=-1)


class ExportEnd(Private):
    async def prepare(self):
        await super().prepare()
        self.path = await self.volume.export()

    def verb(self):
        return self.volume.export_end(self.path)

    async def settle(self):
        # the operation may have been cancelled before it started
        await self.volume.export_end(self.path)
        return await super().settle()


class ImportData(Private):
    def verb(self):
        return self.volume.import_data(8 * MIB)

    async def finish(self, path):
        await self.volume.import_data_end(False)


class ImportDataEnd(Private):
    async def prepare(self):
        await super().prepare()
        path = await self.volume.import_data(8 * MIB)
        await asyncio.to_thread(write, path, b"new")

    def verb(self):
        return self.volume.import_data_end(True)

    async def settle(self):
        await self.volume.import_data_end(False)
        return await super().settle()


class ImportDataFailed(ImportDataEnd):
    def verb(self):
        return self.volume.import_data_end(False)


class ImportVolume(Private):
    def verb(self):
        return self.volume.import_volume(self.sources["private"])


class ImportVolumeByCopy(ImportVolume):
    """Import by a copy, as from another zpool; see the patch in the test."""


class Revert(Private):
    def verb(self):
        return self.volume.revert("r1")


class Grow(Private):
    def verb(self):
        return self.volume.resize(8 * MIB)


class Shrink(Private):
    def verb(self):
        return self.volume.resize(1 * MIB)


class Remove(Private):
    def verb(self):
        return self.volume.remove()


class Scratch(Private):
    """A disposable volume: a root that is a clone, or a volatile volume."""

    content = b"template"

    def make(self, qube):
        return self.lab.clone_of(self.sources["root"], qube)

    async def prepare(self):
        pass

    async def settle(self):
        await afterwards()
        return await seen(self.volume)

    async def go_on(self, outcome):
        await end(self.volume)
        await afterwards()
        assert await seen(self.volume) in (None, (self.content, 4 * MIB, ()))
        await begin(self.volume)
        assert (await seen(self.volume))[0] == self.content
        await end(self.volume)


class StartRoot(Scratch):
    def verb(self):
        return self.volume.start()


class RestartRoot(StartRoot):
    """An earlier start of the qube failed after this volume's."""

    async def prepare(self):
        await self.volume.start()
        await scribble(self.volume, b"scribble")


class StopRoot(Scratch):
    async def prepare(self):
        await begin(self.volume)
        await scribble(self.volume, b"scribble")

    def verb(self):
        return self.volume.stop()


class StartVolatile(StartRoot):
    content = b""

    def make(self, qube):
        return self.lab.volatile(qube)


class StopVolatile(StopRoot):
    content = b""

    def make(self, qube):
        return self.lab.volatile(qube)


#: each operation, and whether its effect is visible in the volume
VERBS = [
    (Create, True),
    (Start, False),
    (Stop, False),
    (StopWithoutRevisions, False),
    (Export, False),
    (ExportWithoutRevisions, False),
    (ExportEnd, False),
    (ImportData, False),
    (ImportDataEnd, True),
    (ImportDataFailed, False),
    (ImportVolume, True),
    (ImportVolumeByCopy, True),
    (Revert, True),
    (Grow, True),
    (Shrink, True),
    (Remove, True),
    (StartRoot, True),
    (RestartRoot, True),
    (StopRoot, True),
    (StartVolatile, True),
    (StopVolatile, True),
]


async def scene(make, cut):
    """Run all steps for one volume; without *cut*, skip the operation."""
    one = make()
    await one.prepare()
    whole = False
    if cut is not None:
        whole, result = await cut.run(one.verb())
        if whole:
            await one.finish(result)
    return one, whole, await one.settle()


async def together(coroutines):
    limit = asyncio.Semaphore(TOGETHER)

    async def limited(coroutine):
        async with limit:
            return await coroutine

    return await asyncio.gather(*map(limited, coroutines))


def ways(at):
    """Return the ways to try at one wait: all, or one of them in turn."""
    return WAYS if LONG else [WAYS[at % len(WAYS)]]


def garbage(lab, volumes):
    """Return zvols without a pointer or snapshot, and temporary snapshots.

    The driver creates a temporary snapshot only in order to clone it.
    """
    names = lab.datasets()
    kept = {name.partition("@")[0] for name in names if "@" in name}
    kept |= {v.dataset.removeprefix(lab.container + "/") for v in volumes}
    return [
        name
        for name in names
        if "@x" in name
        or (name.count("/") == 2 and "@" not in name and name not in kept)
    ]


@pytest.fixture(scope="module")
def stage(zpool):
    lab = Lab(zpool)
    sources = {
        "private": lab.private("source", b"source"),
        "root": lab.private("template", b"template", name="root"),
    }
    return lab, sources, itertools.count()


@pytest.mark.parametrize(
    "kind, visible", VERBS, ids=[kind.__name__ for kind, _ in VERBS]
)
def test_operation_cancelled_at_any_wait_is_done_or_undone(
    stage, monkeypatch, patience, kind, visible
):
    lab, sources, numbers = stage
    if kind is ImportVolumeByCopy:
        monkeypatch.setattr(transfer, "is_clonable", never)
    uncut, struck = Cut(), Counter()

    def make():
        return kind(lab, next(numbers), sources)

    async def cut_everywhere():
        first = await together([scene(make, None), scene(make, uncut)])
        (_, _, before), (_, whole, after) = first
        assert whole and (before != after) == visible, (before, after)
        cuts, done, points = [], [], range(uncut.waits + 1, 0, -EVERY)
        # continue until a point is beyond the end, so that none is missed
        while not any(whole for _, whole, _ in done):
            more = [Cut(at, way) for at in points for way in ways(at)]
            done += await together([scene(make, cut) for cut in more])
            cuts += more
            points = [points[0] + 1]
        for cut, (one, whole, outcome) in zip(cuts, done, strict=True):
            where = f"{one.volume.vid}, {cut.way} at wait {cut.at}"
            assert outcome in (before, after), where
            assert one.reserved() == [], where
            # udev decides how often an operation waits for its device
            assert whole == (cut.waits < cut.at), where
            struck[cut.way] += not whole
        return [(one, outcome) for one, _, outcome in first + done]

    async def go_on(left):
        await together([one.go_on(outcome) for one, outcome in left])
        await together([one.volume.remove() for one, _ in left])

    left = asyncio.run(cut_everywhere())
    print(f"{kind.__name__}: {uncut.waits} waits, cancelled {dict(struck)}")
    volumes = [one.volume for one, _ in left]
    assert lab.sweep_until(lambda: garbage(lab, volumes) == [])
    asyncio.run(go_on(left))
    qubes = {volume.where.dataset.partition("/vm/")[2] for volume in volumes}
    assert lab.sweep_until(
        lambda: not qubes & {name.split("/")[-1] for name in lab.datasets()}
    )
