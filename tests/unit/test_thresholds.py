# SPDX-License-Identifier: BSD-2-Clause
"""Thresholds for written volumes are measured, capped and renewed."""

import asyncio

import pytest

from qubes_storage_zfs.store import thresholds
from qubes_storage_zfs.store.programs import Measured
from qubes_storage_zfs.store.state import Limits
from qubes_storage_zfs.store.thresholds import (
    DOUBTFUL,
    LARGEST,
    UNMEASURED,
    Thresholds,
)


@pytest.fixture
def measured(monkeypatch):
    """Return the thresholds of a zpool, and the disk that they measure."""
    disk = {"guid": "1", "logical": 6144, "referenced": 12288}

    async def measure(_):
        return Measured(disk["logical"], disk["referenced"])

    monkeypatch.setattr(thresholds.importexport, "guid", lambda _: disk["guid"])
    monkeypatch.setattr(thresholds.programs, "measure", measure)
    return Thresholds("tank"), disk


def test_no_volume_is_blank_before_the_measurement(measured):
    tank, _ = measured
    assert not tank.measured
    assert tank.limits == Limits(UNMEASURED, DOUBTFUL, LARGEST)


@pytest.mark.parametrize(
    "referenced, unmodified",
    [(12288, 3072), (90112, 22528), (1 << 40, LARGEST)],
)
def test_the_measured_threshold_is_capped(measured, referenced, unmodified):
    tank, disk = measured
    disk["referenced"] = referenced
    asyncio.run(tank.measure("tank/v"))
    assert tank.limits.unmodified == unmodified
    assert tank.limits.blank == 6144


def test_another_zpool_of_the_same_name_is_measured_again(measured):
    tank, disk = measured
    asyncio.run(tank.measure("tank/v"))
    disk["guid"] = "2"
    assert not tank.measured and tank.limits.blank is None
    disk["logical"] = 26112
    asyncio.run(tank.measure("tank/v"))
    assert tank.limits.blank == 26112
    disk["guid"] = None
    assert not tank.measured


def test_no_threshold_exceeds_the_smallest_change():
    """It is 6144 bytes, or what a blank zvol refers to (doc/design.md)."""
    assert DOUBTFUL < 6144 and UNMEASURED < 12288 and LARGEST < 90112


def test_bytes_that_zfs_itself_writes_do_not_count():
    """ZFS writes up to 8192 bytes (doc/design.md), also without a measurement."""
    assert UNMEASURED >= 8192
