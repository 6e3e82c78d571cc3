# SPDX-License-Identifier: BSD-2-Clause
"""What counts as written is measured, capped and forgotten in time."""

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
    """Thresholds of a zpool, and what its guid and its blank zvols are."""
    disk = {"guid": "1", "logical": 6144, "referenced": 12288}

    async def measure(_):
        return Measured(disk["logical"], disk["referenced"])

    monkeypatch.setattr(thresholds.importexport, "guid", lambda _: disk["guid"])
    monkeypatch.setattr(thresholds.programs, "measure", measure)
    return Thresholds("tank"), disk


def test_no_volume_is_blank_before_the_measurement(measured):
    found, _ = measured
    assert not found.measured
    assert found.limits == Limits(UNMEASURED, DOUBTFUL, LARGEST)


@pytest.mark.parametrize(
    "referenced, untouched",
    [(12288, 3072), (90112, 22528), (1 << 40, LARGEST)],
)
def test_the_measured_threshold_is_capped(measured, referenced, untouched):
    found, disk = measured
    disk["referenced"] = referenced
    asyncio.run(found.measure("tank/v"))
    assert found.limits.unmodified == untouched
    assert found.limits.blank == 6144


def test_another_zpool_of_the_same_name_is_measured_again(measured):
    found, disk = measured
    asyncio.run(found.measure("tank/v"))
    disk["guid"] = "2"
    assert not found.measured and found.limits.blank is None
    disk["logical"] = 26112
    asyncio.run(found.measure("tank/v"))
    assert found.limits.blank == 26112
    disk["guid"] = None
    assert not found.measured


def test_no_threshold_exceeds_the_smallest_change():
    """6144 bytes, and as much as a blank zvol refers to (doc/design.md)."""
    assert DOUBTFUL < 6144 and UNMEASURED < 12288 and LARGEST < 90112


def test_bytes_that_zfs_itself_writes_do_not_count():
    """Up to 8192 bytes (doc/design.md), where nothing can be measured."""
    assert UNMEASURED >= 8192
