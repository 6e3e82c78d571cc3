# SPDX-License-Identifier: BSD-2-Clause
"""Size and usage of a pool, and the cost of the queries."""

import asyncio
import os
import types

import pytest

from qubes_storage_zfs.store import space
from qubes_storage_zfs.zfs import channel

from ..support.background import settled
from ..support.lab import Lab
from ..support.zpools import MIB, sh, write

pytestmark = pytest.mark.side_b


@pytest.fixture
def asked(monkeypatch):
    """Return the names of programs that are run."""
    names = []
    for name in "ask", "read":
        original = getattr(channel, name)

        def noted(program, *args, original=original, **kwargs):
            names.append(program)
            return original(program, *args, **kwargs)

        monkeypatch.setattr(channel, name, noted)
    return names


def value(dataset, name):
    return int(sh("zfs", "get", "-Hpo", "value", name, dataset))


def test_size_of_a_pool_is_its_quota(lab):
    before = lab.pool.size
    sh("zfs", "set", f"quota={64 * MIB}", lab.container)
    assert before > 64 * MIB >= lab.pool.size > 63 * MIB
    lab.session(lab.private(), os.urandom(8 * MIB // 2))
    assert 64 * MIB >= lab.pool.size > 63 * MIB
    assert lab.pool.usage >= 4 * MIB


def test_size_excludes_foreign_reservations(lab):
    before = lab.pool.size
    beside = f"{lab.pool.zpool}/beside"
    sh("zfs", "create", "-o", f"refreservation={200 * MIB}", beside)
    try:
        taken = before - lab.pool.size
        assert 199 * MIB < taken < 201 * MIB
    finally:
        sh("zfs", "destroy", beside)


@pytest.mark.parametrize("layout", [["mirror"], ["raidz1"]])
def test_size_excludes_parity_and_slop(tmp_path, layout):
    """`zpool list` shows the raw size, which includes parity and slop."""
    disks = [tmp_path / f"disk{number}" for number in range(3)]
    for disk in disks:
        with open(disk, "wb") as file:
            file.truncate(512 * MIB)
    sh("zpool", "create", "-m", "none", "parity", *layout, *map(str, disks))
    try:
        lab = Lab("parity")
        raw = int(sh("zpool", "list", "-Hpo", "size", "parity"))
        top = value("parity", "available") + value("parity", "used")
        assert lab.pool.size <= top < raw
        # ZFS reserves at least 128 MiB, or a quarter
        assert lab.pool.size < 1020 * MIB - 100 * MIB
        free = lab.pool.available()
        volume = lab.private(content=os.urandom(MIB), size=64 * MIB)
        gone = free - lab.pool.available()
        assert MIB <= gone < 2 * MIB and volume.usage >= MIB
    finally:
        sh("zpool", "destroy", "-f", "parity")


def test_included_in_returns_the_outer_pool(zpool, make_lab):
    """Otherwise the disk space widget would count it twice."""
    outer, inner = make_lab(), make_lab()
    inner.pool.container = f"{outer.container}/below/inner"
    other = types.SimpleNamespace(container=zpool)
    app = types.SimpleNamespace(
        pools={"outer": outer.pool, "inner": inner.pool, "other": other}
    )
    assert inner.pool.included_in(app) is outer.pool
    assert outer.pool.included_in(app) is other
    del app.pools["other"]
    assert outer.pool.included_in(app) is None


def polled(pool, volumes=()):
    """Read the values that the disk space widget reads each minute."""
    found = (pool.size, pool.usage, pool.usage_details)
    for volume in volumes:
        assert volume.path.startswith("/dev/zvol/")
        assert not volume.is_outdated() and volume.size > 0
    return found, [volume.usage for volume in volumes]


def test_usage_of_revisions_is_reported(lab, monkeypatch):
    volume = lab.private(size=16 * MIB)
    for _ in range(3):
        lab.session(volume, os.urandom(2 * MIB))
    lab.session(volume, b"small")

    async def counted():
        assert "revisions_usage" not in lab.pool.usage_details
        for _ in range(100):
            await asyncio.sleep(0.05)
            details = lab.pool.usage_details
            if "revisions_usage" in details:
                return details["revisions_usage"]
        return None

    reported = asyncio.run(counted())
    before = lab.pool.usage
    lab.run(asyncio.sleep(0))
    volume.revisions_to_keep = 0
    lab.session(volume, b"again")
    sh("zpool", "sync", lab.pool.zpool)
    freed = before - lab.pool.usage
    assert reported > 1.9 * MIB
    assert abs(reported - freed) < 0.5 * MIB


def test_poll_runs_one_program_and_none_for_halted_qubes(
    lab, asked, monkeypatch
):
    volumes = [lab.private(f"q{number}", b"x") for number in range(5)]
    monkeypatch.setattr(space, "COUNT_AGAIN", 10**9)

    async def poll():
        lab.pool.space._counted = space.time.monotonic()
        return polled(lab.pool, volumes)

    lab.run(poll())
    asked.clear()
    before = lab.run(poll())
    assert asked == ["space"]

    # a running volume is queried each time; changes by operations are seen
    lab.start(volumes[0])
    write(volumes[0].path, os.urandom(2 * MIB))
    sh("zpool", "sync", lab.pool.zpool)
    asked.clear()
    after = lab.run(poll())
    assert asked == ["space", "state"]
    assert after[1][0] >= before[1][0] + 1.9 * MIB
    assert after[1][1:] == before[1][1:]
    lab.stop(volumes[0])
    assert lab.run(poll())[1][0] == after[1][0]


def test_absent_pool_reports_no_size(away, asked):
    volume = away.private(content=b"x")
    known = away.run(one_poll(away.pool, volume))
    sh("zpool", "export", "away")
    (size, usage, details), _ = away.run(one_poll(away.pool, volume))
    assert (size, usage, details) == (None, None, {})
    sh("zpool", "import", "-N", "-d", "/tmp", "away")
    again = away.run(one_poll(away.pool, volume))
    assert abs(again[0][0] - known[0][0]) < MIB and again[1] == known[1]


async def one_poll(pool, volume):
    return polled(pool, [volume])


def test_uncountable_usage_is_not_reported(lab, monkeypatch):
    async def story():
        lab.pool.space._revisions = 5
        lab.pool.space.qubes_root = "nothere/vm"
        await lab.pool.space.count()
        return lab.pool.space._revisions

    assert asyncio.run(settled(story())) is None
