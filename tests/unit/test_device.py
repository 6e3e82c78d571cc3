# SPDX-License-Identifier: BSD-2-Clause
"""Opening and flushing of device nodes, without a device."""

import asyncio
import os

import pytest

from qubes_storage_zfs.zfs import devices


def _failing_open(monkeypatch, *codes: int) -> list[str]:
    """Make os.open() fail with each of *codes*, then succeed."""
    pending, opened, real = list(codes), [], os.open

    def fake(path, flags):
        opened.append(path)
        if pending:
            raise OSError(pending.pop(0), "no")
        return real("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(os, "open", fake)
    return opened


def test_opening_is_retried_after_a_lock_timeout(monkeypatch) -> None:
    opened = _failing_open(monkeypatch, 512, 512)
    os.close(devices.open_node("/dev/zd0", os.O_RDONLY))
    assert opened == ["/dev/zd0"] * 3


def test_opening_is_retried_a_limited_number_of_times(monkeypatch) -> None:
    opened = _failing_open(monkeypatch, *[512] * 100)
    with pytest.raises(OSError):
        devices.open_node("/dev/zd0", os.O_RDONLY)
    assert len(opened) == devices.OPEN_TRIES


def test_another_error_is_not_retried(monkeypatch) -> None:
    opened = _failing_open(monkeypatch, 16)
    with pytest.raises(OSError):
        devices.open_node("/dev/zd0", os.O_RDONLY)
    assert len(opened) == 1


def test_a_failed_flush_is_reported(monkeypatch) -> None:
    """Only a volume without a device node has nothing to flush."""

    async def flush() -> None:
        async with devices.flushed("tank/vm/work/private"):
            pass

    _failing_open(monkeypatch, 5)
    with pytest.raises(OSError):
        asyncio.run(flush())
    _failing_open(monkeypatch, 2)
    asyncio.run(flush())
