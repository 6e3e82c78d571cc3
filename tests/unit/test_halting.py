# SPDX-License-Identifier: BSD-2-Clause
"""Operations wait only once for a stop that never comes."""

import asyncio
import logging
import types

import pytest
import qubes.storage

from qubes_storage_zfs.driver import halting
from qubes_storage_zfs.driver.zvol import ZfsZvolPool


class Qube:
    """A halted qube that is its own application object."""

    name = "tmpl"

    def __init__(self):
        self.app = self
        self.vmm = types.SimpleNamespace(offline_mode=False)
        self.domains = {"tmpl": self}

    def get_power_state(self):
        return "Halted"


@pytest.fixture(name="stale")
def fixture_stale(monkeypatch):
    """Return a volume that qubesd noted as running before a crash."""
    monkeypatch.setattr(halting, "LIMIT", 0.2)
    monkeypatch.setattr(halting, "INTERVAL", 0.01)
    monkeypatch.setattr(qubes.storage.Volume, "is_running", lambda _: True)
    pool = ZfsZvolPool(name="p", container="z/p")
    config = {"name": "root", "pool": "p", "rw": True, "size": 1 << 20}
    volume = pool.init_volume(Qube(), {**config, "save_on_stop": True})
    volume.app = Qube()
    return volume


def waits(*volumes):
    """Return how many seconds an operation of the volumes waits."""

    async def wait():
        loop = asyncio.get_running_loop()
        began = loop.time()
        # several qubes of one template may start at the same time
        await asyncio.gather(
            *(halting.wait_for_stop(*volumes) for _ in range(3))
        )
        return loop.time() - began

    return asyncio.run(wait())


def test_a_wait_that_timed_out_is_not_repeated(stale, caplog):
    caplog.set_level(logging.WARNING)
    assert stale.is_stopping()
    assert waits(None, stale) >= halting.LIMIT
    assert waits(stale) < halting.LIMIT / 2
    assert [record.getMessage() for record in caplog.records] == [
        "the volume tmpl/root in the pool p was not stopped within 0.2 s after"
        " its qube stopped; start the qube and shut it down again"
    ]
    # the volume is still in use
    assert stale.is_running()


def test_a_later_stop_is_waited_for_again(stale, monkeypatch):
    waits(stale)
    assert not stale.is_stopping()

    async def refuse():
        raise OSError("not here")

    monkeypatch.setattr(stale.pool, "first_use", refuse)
    asyncio.run(stale.stop())
    assert stale.is_stopping()
    assert waits(stale) >= halting.LIMIT
