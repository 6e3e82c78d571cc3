# SPDX-License-Identifier: BSD-2-Clause
"""Delays between passphrase prompts that do not unlock a pool.

Qubes' default policy lets any qube start a disposable (qubes.OpenURL), so a
qube can cause a prompt whenever the pool of its disposables is locked.
"""

import time

from ..store import messages
from ..store.rundir import now
from ..zfs.keys import NotAsked

FIRST = 60.0  # seconds
LONGEST = 64 * FIRST


class Delayed(NotAsked):
    """A prompt before did not unlock the pool, and the next is not due."""

    def __init__(self, pool: str, seconds: float) -> None:
        due = time.localtime(time.time() + seconds + 1)
        clock = time.strftime("%H:%M:%S", due)
        super().__init__(messages.DELAYED, time=clock, pool=pool)


class Backoff:
    """When the next prompt for one pool may be shown.

    A Key creates it and keeps it as long as it exists.  Only the event loop's
    thread touches it.  A restart of qubesd starts without a delay.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._wait = 0.0
        self._not_before = 0.0

    def check(self) -> None:
        """:raises Delayed: if no prompt may be shown now"""
        remaining = self._not_before - now()
        if remaining > 0:
            raise Delayed(self._pool, remaining)

    def lengthen(self) -> None:
        """Count a prompt that did not unlock the pool."""
        self._wait = min(2 * self._wait or FIRST, LONGEST)
        self._not_before = now() + self._wait

    def reset(self) -> None:
        """Allow a prompt at once, because the pool was unlocked."""
        self._wait = self._not_before = 0.0
