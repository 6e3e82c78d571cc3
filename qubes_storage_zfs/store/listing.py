"""Which volumes a pool has on disk, asked synchronously."""

from collections.abc import Mapping

from ..zfs import channel
from . import naming


class Listing:
    """The volumes below one dataset; a pool has one of these.

    :ivar home: that dataset
    :ivar last: the last answer; empty before the first
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self.last: dict[str, str] = {}

    def now(self) -> dict[str, str]:
        """Return vid -> value of the pointer, for every volume there is.

        If the answer takes longer than the deadline, as in a pool with many
        volumes, it becomes the last answer when it comes.

        :raises ZfsError: if ZFS cannot be asked now
        """
        question = {"home": self.home, "prefix": naming.POINTER}
        channel.ask_for_list("volumes", self.home, question, self._note)
        return self.last

    def _note(self, answer: Mapping[str, str] | None) -> None:
        """Keep an answer; called in another thread.

        A name that this driver does not give is none of its volumes', and
        need not be text that qubesd can send.
        """
        self.last = {
            vid: value
            for vid, value in (answer or {}).items()
            if naming.is_vid(vid)
        }
