# SPDX-License-Identifier: BSD-2-Clause
"""The registries of a process, and a simulated restart."""

import threading

import pytest

from qubes_storage_zfs.zfs import runtime


class Registry:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _own_runtime(monkeypatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime())


def test_each_class_has_one_registry():
    class Other(Registry):
        pass

    assert runtime.of(Registry) is runtime.of(Registry)
    assert runtime.of(Registry) is not runtime.of(Other)


def test_a_restart_closes_all_registries():
    before = runtime.of(Registry)
    runtime.restart()
    assert before.closed
    assert runtime.of(Registry) is not before
    assert not runtime.of(Registry).closed


def test_concurrent_threads_get_the_same_registry():
    barrier, seen = threading.Barrier(8), []

    class Slow:
        def __init__(self):
            threading.Event().wait(0.05)

    def ask():
        barrier.wait()
        seen.append(runtime.of(Slow))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1
