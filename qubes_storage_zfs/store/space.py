# SPDX-License-Identifier: BSD-2-Clause
"""The space that a pool uses and can use, for synchronous callers."""

import asyncio
import contextlib
import time

from ..zfs.errors import NotReadable, ZfsError
from . import pool_programs

#: seconds between two counts of the space of revisions, which reads the
#: properties of every volume
COUNT_AGAIN = 600


class Space:
    """The space of a pool.

    A Pool creates one and keeps it as long as it exists; a tool creates one for
    one report.  Only the thread of the event loop uses it.

    :ivar qubes_root: the qubes root of the pool
    :ivar removed: the result of of_removed()
    :ivar counting: the task of the current or last count; None: there was none
    """

    def __init__(self, qubes_root: str) -> None:
        """Ask nothing yet."""
        self.qubes_root = qubes_root
        #: the answer to all calls in one iteration of the event loop
        self._cached: dict[str, int] | None = None
        #: the last answer
        self._last: dict[str, int] = {}
        self._revisions: int | None = None
        self.removed: int | None = None
        #: when the last count started, on the clock time.monotonic()
        self._counted = -float(COUNT_AGAIN)
        self.counting: asyncio.Task[None] | None = None

    def now(self) -> dict[str, int]:
        """Return ``used`` and ``available`` of the qubes root, in bytes.

        ZFS has taken quotas, reservations, parity and slop space into account.
        The result is empty if ZFS cannot be asked, and the last answer if the
        zpool does not answer in time.

        ZFS is asked once for all calls in one iteration of the event loop.
        """
        if self._cached is not None:
            return self._cached
        try:
            answer = pool_programs.space_now(self.qubes_root)
        except NotReadable:
            return self._last
        except ZfsError:
            return {}
        self._last = answer
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._drop_cached)
            self._cached = answer
        return answer

    async def available(self) -> int | None:
        """Return ``available`` in bytes, without a time limit.

        :return: None if ZFS cannot be asked
        """
        try:
            return (await pool_programs.space(self.qubes_root)).get("available")
        except ZfsError:
            return None

    def _drop_cached(self) -> None:
        self._cached = None

    def details(self) -> dict[str, int]:
        """Return the usage details of the pool for qubesd, in bytes.

        They are ``data_usage`` and ``data_size`` and, after the first count,
        ``revisions_usage`` and ``removed_usage``.  They are empty if ZFS cannot
        be asked.
        """
        space = self.now()
        if not space:
            return {}
        counted = {
            "revisions_usage": self.of_revisions(),
            "removed_usage": self.of_removed(),
        }
        return {
            "data_usage": space["used"],
            "data_size": space["used"] + space["available"],
            **{name: n for name, n in counted.items() if n is not None},
        }

    def of_revisions(self) -> int | None:
        """Return the bytes that would be free without revisions.

        A task counts them in the background; the result is that of the last
        count.

        :return: None before the first count, or if the last one failed
        """
        self._count_now_and_then()
        return self._revisions

    def of_removed(self) -> int | None:
        """Return the bytes of removed volumes that clones still need.

        :return: None before the first count, or if the last one failed
        """
        self._count_now_and_then()
        return self.removed

    def _count_now_and_then(self) -> None:
        idle = self.counting is None or self.counting.done()
        if idle and time.monotonic() - self._counted >= COUNT_AGAIN:
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                self._counted = time.monotonic()
                self.counting = loop.create_task(self.count())

    async def count(self) -> None:
        """Count the space of revisions and removed volumes.

        Each qube has a channel program of its own, because a channel program
        delays other work of the zpool as long as it runs.
        """
        revisions = removed = 0
        try:
            for qube in await pool_programs.qubes(self.qubes_root):
                retained = await pool_programs.retained(self.qubes_root, qube)
                revisions += retained.revisions
                removed += retained.removed
        except ZfsError:
            self._revisions = self.removed = None
        else:
            self._revisions, self.removed = revisions, removed
