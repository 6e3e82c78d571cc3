# SPDX-License-Identifier: BSD-2-Clause
"""Device nodes: the parts that need no device."""

import asyncio
import os

import pytest

from qubes_storage_zfs.zfs import devices


def _answers(monkeypatch, *codes: int) -> list[str]:
    """os.open() fails with each of *codes*, then works."""
    left, opened, real = list(codes), [], os.open

    def fake(path, flags):
        opened.append(path)
        if left:
            raise OSError(left.pop(0), "no")
        return real("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(os, "open", fake)
    return opened


def test_opening_is_retried_after_a_lock_timeout(monkeypatch) -> None:
    opened = _answers(monkeypatch, 512, 512)
    os.close(devices.open_node("/dev/zd0", os.O_RDONLY))
    assert opened == ["/dev/zd0"] * 3


def test_opening_is_retried_a_limited_number_of_times(monkeypatch) -> None:
    opened = _answers(monkeypatch, *[512] * 100)
    with pytest.raises(OSError):
        devices.open_node("/dev/zd0", os.O_RDONLY)
    assert len(opened) == devices.OPEN_TRIES


def test_another_error_is_not_retried(monkeypatch) -> None:
    opened = _answers(monkeypatch, 16)
    with pytest.raises(OSError):
        devices.open_node("/dev/zd0", os.O_RDONLY)
    assert len(opened) == 1


def test_a_failed_flush_is_reported(monkeypatch) -> None:
    """Only one that has no node has nothing to be flushed."""

    async def flush() -> None:
        async with devices.flushed("tank/vm/work/private"):
            pass

    _answers(monkeypatch, 5)
    with pytest.raises(OSError):
        asyncio.run(flush())
    _answers(monkeypatch, 2)
    asyncio.run(flush())
