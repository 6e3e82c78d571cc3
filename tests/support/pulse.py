# SPDX-License-Identifier: BSD-2-Clause
"""Measure the delays of an event loop."""

import asyncio
import threading
import time

#: this many worst gaps cannot all come from one callback
QUBES = 8


class Pulse:
    """Record the delays of a task that is due every millisecond."""

    def __init__(self):
        self.gaps = []

    async def beat(self, stop):
        while not stop.is_set():
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            self.gaps.append(time.perf_counter() - begin - 0.001)

    def __str__(self):
        gaps = sorted(self.gaps)
        return (
            f"worst {gaps[-1] * 1000:.1f} ms,"
            f" {QUBES}th worst {gaps[-QUBES] * 1000:.1f} ms,"
            f" median {gaps[len(gaps) // 2] * 1000:.2f} ms of {len(gaps)}"
        )


class Bare:
    """Run a loop with only its pulse in a thread, for comparison."""

    def __enter__(self):
        self.pulse, self.stop = Pulse(), threading.Event()
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.pulse.beat(self.stop))
        )
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
