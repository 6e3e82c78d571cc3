# SPDX-License-Identifier: BSD-2-Clause
"""How much a pool holds, can hold, and would give back."""

import asyncio
import contextlib
import time

from ..zfs.errors import NotReadable, ZfsError
from . import pool_programs

#: seconds after which what the revisions hold is counted again, if anybody
#: asks for it: each volume must be looked at
COUNT_AGAIN = 600


class Space:
    """Of the volumes below one dataset.

    :ivar qubes_root: that dataset
    """

    def __init__(self, qubes_root: str) -> None:
        self.qubes_root = qubes_root
        #: until the event loop goes on
        self._known: dict[str, int] | None = None
        #: the last answer
        self._last: dict[str, int] = {}
        self._revisions: int | None = None
        #: as of_removed() says
        self.removed: int | None = None
        self._counted = -float(COUNT_AGAIN)
        #: the last time that they are, or were, counted
        self.counting: asyncio.Task[None] | None = None

    def now(self) -> dict[str, int]:
        """``used`` and ``available``, in bytes, as ZFS gives them to what is
        below: quotas, reservations, parity and slop are in it.  Empty if ZFS
        cannot be asked; the last answer if the zpool gives none now.

        Asked once for all that qubesd wants to know at a time.
        """
        if self._known is not None:
            return self._known
        try:
            answer = pool_programs.space_now(self.qubes_root)
        except NotReadable:
            return self._last
        except ZfsError:
            return {}
        self._last = answer
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._forget)
            self._known = answer
        return answer

    async def available(self) -> int | None:
        """Return the bytes that can still be written; None if unknown.

        The same as now() tells, waited for.
        """
        try:
            return (await pool_programs.space(self.qubes_root)).get("available")
        except ZfsError:
            return None

    def _forget(self) -> None:
        self._known = None

    def details(self) -> dict[str, int]:
        """Bytes: ``data_usage`` and ``data_size``; if they were counted,
        ``revisions_usage``, which would be free without revisions, and
        ``removed_usage``, which clones of removed volumes keep allocated.
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
        """Bytes that would be free if there were no revisions; None if they
        were not counted yet.

        They are counted apart from whoever asks, who is told what was found
        the last time.
        """
        self._count_now_and_then()
        return self._revisions

    def of_removed(self) -> int | None:
        """Bytes in generations that no volume has, but clones of them need;
        None if they were not counted yet.
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
        """A program for each qube, so that nothing waits for long for one."""
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
