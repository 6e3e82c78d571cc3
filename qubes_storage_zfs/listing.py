"""Which volumes a pool has on disk, asked synchronously."""

from . import layout
from .zfs import channel


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

        A name that this driver does not give is none of its volumes', and
        need not be text that qubesd can send.

        :raises ZfsError: if ZFS cannot be asked now
        """
        question = {"home": self.home, "prefix": layout.POINTER}
        answer = channel.ask("volumes", self.home, question)
        self.last = {
            vid: value
            for vid, value in (answer or {}).items()
            if layout.is_vid(vid)
        }
        return self.last
