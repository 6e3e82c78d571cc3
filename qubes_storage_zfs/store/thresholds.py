# SPDX-License-Identifier: BSD-2-Clause
"""How many bytes ZFS itself writes to a volume that no qube wrote to.

ZFS rewrites one block of a zvol when its intent log is ended and started
again: at the first opening after the zvol was cloned, its zpool imported or
its key loaded.  The smallest change that a qube can make writes at least as
many bytes as a blank zvol refers to.  Both depend on the disks.

Nothing that is read from a disk decides where the line is: this process
measures a zvol that it has just made, and keeps the result in memory.
"""

from dataclasses import dataclass

from ..zfs import importexport
from . import programs
from .state import Limits

#: bytes; counts as not written until this process has measured.  ZFS itself
#: writes up to 8192 bytes with sectors of 4 KiB (see doc/design.md)
UNMEASURED = 8192
#: bytes; what is between this and LARGEST is unsure until this process has
#: measured, and is measured before it is committed.  The smallest change writes
#: 12288 bytes, or 6144 with redundant_metadata=none and sectors of 512 bytes
DOUBTFUL = 4096
#: of what a blank zvol refers to: the intent log's block is at most 0.17 of
#: it, or 0.25 where the volume has copies=2 and the blank zvol had not
_SHARE = 4
#: bytes; a quarter of the most that a blank zvol referred to (90112)
LARGEST = 90112 // _SHARE


@dataclass(frozen=True)
class Blank:
    """What a zvol takes that nothing was written to.

    :ivar guid: of the zpool that it was measured in
    :ivar logical: bytes, as "logicalreferenced" reports them
    :ivar referenced: bytes on disk, as "referenced" reports them
    """

    guid: str
    logical: int
    referenced: int


class Thresholds:
    """What this process has measured in one container, until it ends."""

    def __init__(self, zpool: str) -> None:
        self._zpool = zpool
        self._blank: Blank | None = None

    def _known(self) -> Blank | None:
        """What was measured in the zpool that has the name now."""
        blank = self._blank
        if blank is not None and blank.guid != importexport.guid(self._zpool):
            return None
        return blank

    @property
    def measured(self) -> bool:
        """Whether this process has measured the zpool."""
        return self._known() is not None

    @property
    def limits(self) -> Limits:
        """What the channel programs compare with."""
        blank = self._known()
        if blank is None:
            return Limits(UNMEASURED, DOUBTFUL, LARGEST)
        unmodified = min(blank.referenced // _SHARE, LARGEST)
        return Limits(unmodified, DOUBTFUL, LARGEST, blank.logical)

    async def measure(self, dataset: str) -> None:
        """Measure a zvol that was just made, unless that was done before.

        :raises ZfsError: if ZFS refuses
        """
        guid = importexport.guid(self._zpool)
        if self.measured or guid is None:
            return
        measured = await programs.measure(dataset)
        self._blank = Blank(guid, measured.logical, measured.referenced)
