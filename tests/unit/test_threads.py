# SPDX-License-Identifier: BSD-2-Clause
"""Each zpool has threads of its own, and one question at a time."""

import asyncio
import threading
import time

import pytest

from qubes_storage_zfs.zfs import errors, lzc, runtime, threads


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime())
    return threads.for_zpool_of("slow/a/b")


@pytest.fixture
def gate():
    """Return the event that lets hanging calls continue."""
    event = threading.Event()
    yield event
    event.set()


def test_datasets_of_one_zpool_share_its_threads(own):
    for subject in "slow", "slow/x", "slow@y", "slow/a/b@r1":
        assert threads.for_zpool_of(subject) is own
    for subject in "slower", "slower/slow", "", "/dev/sda", "a b", "1":
        assert threads.for_zpool_of(subject) is not own
    none = threads.for_zpool_of(threads.NO_ZPOOL)
    assert threads.for_zpool_of("no name\n") is none
    pair = threads.for_zpool_of(threads.both("slow/a", "fast/b"))
    assert pair not in (own, none, threads.for_zpool_of("fast"))
    assert threads.for_zpool_of(threads.both("", "fast/b")) is not none


def test_an_overdue_question_is_not_repeated(own, gate):
    calls = []

    def slow():
        calls.append("slow")
        return gate.wait()

    start = time.monotonic()
    with pytest.raises(errors.SilentZpool) as caught:
        own.questions.ask(slow)
    assert caught.value.zpool == "slow"
    assert threads.DEADLINE <= time.monotonic() - start < 2
    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(errors.SilentZpool):
            own.questions.ask(slow)
    assert time.monotonic() - start < threads.DEADLINE
    assert calls == ["slow"] and not own.responds
    gate.set()
    while not own.responds:
        time.sleep(0.01)
    assert own.questions.ask(slow) is True


def test_a_slow_listing_does_not_delay_properties(own, gate):
    with pytest.raises(errors.SilentZpool):
        own.listings.ask(gate.wait)
    assert own.responds
    assert own.questions.ask(int) == 0


def test_an_exception_in_a_question_is_raised(own):
    with pytest.raises(ZeroDivisionError):
        own.questions.ask(lambda: 1 / 0)
    assert own.responds


def test_concurrent_questions_run_one_after_another(own):
    results = []

    def work():
        results.append(own.questions.ask(time.sleep, 0.01))

    asking = [threading.Thread(target=work) for _ in range(5)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert results == [None] * 5 and own.responds


def test_a_hanging_zpool_does_not_block_others(own, gate):
    many = 2 * threads.WORKERS

    async def work():
        for reads in (False, True):
            hanging = [
                asyncio.ensure_future(
                    lzc.in_thread("slow/x", gate.wait, reads=reads)
                )
                for _ in range(many)
            ]
            await asyncio.sleep(0)
            for _ in range(many):
                await asyncio.wait_for(
                    lzc.in_thread("fast/x", int, reads=reads), 10
                )
            assert not any(task.done() for task in hanging)
            gate.set()
            await asyncio.gather(*hanging)
            gate.clear()

    asyncio.run(work())
