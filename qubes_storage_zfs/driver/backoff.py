# SPDX-License-Identifier: BSD-2-Clause
"""Delays after passphrase prompts that did not unlock a pool.

The default policy of Qubes lets any qube start a disposable (qubes.OpenURL).
So a qube can cause a prompt whenever the pool of its disposables is locked.
"""

import time

from ..store import messages
from ..store.rundir import now
from ..zfs.keys import PromptFailed

FIRST = 60.0  # seconds
LONGEST = 64 * FIRST


class Delayed(PromptFailed):
    """The previous prompt did not unlock the pool, and the delay lasts.

    Backoff.check() raises it.
    """

    def __init__(self, pool: str, seconds: float) -> None:
        """Compute the time of day at which the delay ends.

        :param pool: name of the pool
        :param seconds: the rest of the delay
        """
        due = time.localtime(time.time() + seconds + 1)
        clock = time.strftime("%H:%M:%S", due)
        super().__init__(messages.DELAYED, time=clock, pool=pool)


class Backoff:
    """The delay until the next prompt for one pool may be shown.

    A Key creates it, and it lasts as long as the Key.  Only the thread of the
    event loop uses it.  A qubesd that has restarted starts without a delay.

    The delay is 60 s after the first prompt that did not unlock the pool.  Each
    further one doubles it, up to 64 minutes.
    """

    def __init__(self, pool: str) -> None:
        """Start without a delay.

        :param pool: name of the pool, for the message
        """
        self._pool = pool
        self._wait = 0.0
        self._not_before = 0.0

    def check(self) -> None:
        """Check that a prompt may be shown now.

        :raises Delayed: if the delay lasts
        """
        remaining = self._not_before - now()
        if remaining > 0:
            raise Delayed(self._pool, remaining)

    def lengthen(self) -> None:
        """Double the delay, because a prompt did not unlock the pool."""
        self._wait = min(2 * self._wait or FIRST, LONGEST)
        self._not_before = now() + self._wait

    def reset(self) -> None:
        """Remove the delay, because the pool was unlocked."""
        self._wait = self._not_before = 0.0
