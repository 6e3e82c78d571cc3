# SPDX-License-Identifier: BSD-2-Clause
"""The list of the volumes of a pool, for synchronous callers."""

from collections.abc import Mapping

from . import naming, pool_programs
from .pointer import BadPointer, Pointer


class Listing:
    """The volumes of a pool, by their vids.

    A Pool creates one and keeps it as long as it exists.  now() is called in
    the thread of the event loop; a thread of the zpool sets ``last``.

    :ivar qubes_root: the qubes root of the pool
    :ivar last: the last answer; empty before the first one
    """

    def __init__(self, qubes_root: str) -> None:
        """Ask nothing yet."""
        self.qubes_root = qubes_root
        self.last: dict[str, Pointer | None] = {}

    def now(self) -> dict[str, Pointer | None]:
        """Return vid -> pointer of all volumes; None: it cannot be parsed.

        In a pool with many volumes, the answer can take longer than the
        deadline.  Then this raises SilentZpool, and the late answer becomes
        ``last``.

        :raises ZfsError: if ZFS cannot be asked now
        """
        pool_programs.list_volumes(self.qubes_root, self._note)
        return self.last

    def _note(self, answer: Mapping[str, str]) -> None:
        """Keep an answer; called in another thread.

        Names that are not vids are left out: they belong to no volume, and
        qubesd may be unable to send them.
        """
        self.last = {
            vid: _parsed(value)
            for vid, value in answer.items()
            if naming.is_vid(vid)
        }


def _parsed(value: str) -> Pointer | None:
    try:
        return Pointer.parse(value)
    except BadPointer:
        return None
