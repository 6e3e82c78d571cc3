# SPDX-License-Identifier: BSD-2-Clause
"""The delay after a prompt that did not unlock a pool."""

import asyncio
import types

import pytest

from qubes_storage_zfs.driver import backoff, keytimer
from qubes_storage_zfs.zfs import keys
from qubes_storage_zfs.zfs.errors import WrongPassphrase

MINUTE = 60


@pytest.fixture
def clock(monkeypatch):
    """Return the clock that backoff.py reads, in seconds."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(backoff, "now", lambda: clock.now)
    return clock


class Pool:
    """A Key with a simulated kernel and simulated answers to its prompts."""

    def __init__(self, monkeypatch):
        self.loaded = False
        #: what the next prompts raise; None for the correct passphrase
        self.replies = []
        self.shown = 0
        monkeypatch.setattr(keys, "state", self._state)
        monkeypatch.setattr(keys, "load", self._load)
        monkeypatch.setattr(keytimer.Key, "watch", lambda self: None)
        self.key = keytimer.Key("tank/encryption/work", "work", None)

    async def _state(self, root):
        return keys.KeyState(True, root, self.loaded, "passphrase")

    async def _load(self, _root, prompt):
        await prompt("unlock", 1)
        self.loaded = True

    async def _prompt(self, _purpose, _answers):
        self.shown += 1
        await asyncio.sleep(0)
        if (reply := self.replies.pop(0)) is not None:
            raise reply

    def start(self, *replies):
        """Start a qube; return whether a prompt was shown."""
        self.replies = list(replies)
        before = self.shown
        try:
            asyncio.run(self.key.unlock(self._prompt, for_operation=False))
        except (keys.PromptFailed, WrongPassphrase) as exc:
            self.refusal = exc
        return self.shown > before


@pytest.fixture
def pool(monkeypatch):
    return Pool(monkeypatch)


CANCELLED = keys.PromptFailed("cancelled")


def test_a_cancelled_prompt_delays_the_next(pool, clock):
    for minutes in 1, 2, 4, 8, 16, 32, 64, 64, 64:
        assert pool.start(CANCELLED)
        assert not pool.start(None)
        assert isinstance(pool.refusal, backoff.Delayed)
        clock.now += minutes * MINUTE - 1
        assert not pool.start(None)
        clock.now += 1
    assert pool.start(None) and pool.loaded


def test_the_refusal_states_the_time_and_the_remedy(pool, clock, monkeypatch):
    monkeypatch.setattr(backoff.time, "time", lambda: 0.0)
    monkeypatch.setattr(backoff.time, "localtime", backoff.time.gmtime)
    pool.start(CANCELLED)
    pool.start(None)
    assert str(pool.refusal) == (
        "the last passphrase prompt did not unlock the pool, so qubesd shows"
        " no other prompt before 00:01:01; to enter the passphrase now, run"
        " 'sudo qvm-zfs unlock work' in a dom0 terminal"
    )


@pytest.mark.parametrize("by_hand", [False, True])
def test_unlocking_ends_the_delay(pool, clock, by_hand):
    for _ in range(3):
        assert pool.start(CANCELLED)
        clock.now += 64 * MINUTE
    if by_hand:
        assert pool.start(CANCELLED)
        pool.loaded = True
        assert not pool.start()
    else:
        assert pool.start(None)
    pool.loaded = False
    assert pool.start(CANCELLED)
    clock.now += MINUTE
    assert pool.start(None)


def test_wrong_passphrases_delay_the_next_prompt(pool, clock):
    assert pool.start(WrongPassphrase("tank"))
    assert not pool.start(None)


def test_a_prompt_that_was_not_shown_causes_no_delay(pool, clock):
    assert pool.start(keys.NoPrompt("the GUI domain is not running"))
    assert pool.start(None) and pool.loaded


def test_a_closed_prompt_delays_the_next(pool, clock):
    async def cancel():
        task = asyncio.create_task(pool.key.unlock(forever))
        while not pool.shown:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def forever(_purpose, _answers):
        pool.shown += 1
        await asyncio.Event().wait()

    asyncio.run(cancel())
    assert not pool.start(None)
    clock.now += MINUTE
    assert pool.start(None)


def test_concurrent_starts_share_one_prompt(pool, clock):
    async def both():
        pool.replies = [CANCELLED]
        return await asyncio.gather(
            *(
                pool.key.unlock(pool._prompt, for_operation=False)
                for _ in range(2)
            ),
            return_exceptions=True,
        )

    assert asyncio.run(both()) == [CANCELLED, CANCELLED]
    assert pool.shown == 1
