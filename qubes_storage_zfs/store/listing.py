# SPDX-License-Identifier: BSD-2-Clause
"""Which volumes a pool has on disk, asked synchronously."""

from collections.abc import Mapping

from . import naming, pool_programs
from .pointer import BadPointer, Pointer


class Listing:
    """The volumes below one dataset; a pool has one of these.

    :ivar qubes_root: that dataset
    :ivar last: the last answer; empty before the first
    """

    def __init__(self, qubes_root: str) -> None:
        self.qubes_root = qubes_root
        self.last: dict[str, Pointer | None] = {}

    def now(self) -> dict[str, Pointer | None]:
        """Return vid -> pointer, for every volume there is; None: it has one
        that cannot be parsed.

        If the answer takes longer than the deadline, as in a pool with many
        volumes, it becomes the last answer when it comes.

        :raises ZfsError: if ZFS cannot be asked now
        """
        pool_programs.list_volumes(self.qubes_root, self._note)
        return self.last

    def _note(self, answer: Mapping[str, str]) -> None:
        """Keep an answer; called in another thread.

        A name that this driver does not give is none of its volumes', and
        need not be text that qubesd can send.
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
