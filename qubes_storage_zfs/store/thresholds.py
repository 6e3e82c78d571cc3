# SPDX-License-Identifier: BSD-2-Clause
"""Thresholds: how many written bytes count as a modification of a volume.

ZFS itself writes to zvols.  It rewrites one block of a zvol when it replaces
the zvol's intent log: at the first opening after the zvol was cloned, its zpool
was imported or its key was loaded.  The smallest change that a qube can make
writes at least as many bytes as a blank zvol references.  Both numbers depend
on the disks.

No data from a disk decides about the threshold, because another machine may
have written that data.  This process measures a zvol that it has just created,
and keeps the result in memory.
"""

from dataclasses import dataclass

from ..zfs import importexport
from . import programs
from .state import Limits

#: bytes; the threshold before this process has measured.  ZFS itself writes up
#: to 8192 bytes with sectors of 4 KiB (see doc/design.md)
UNMEASURED = 8192
#: bytes; a number between this and LARGEST is uncertain before this process has
#: measured, so commit() measures first.  The smallest change writes 12288
#: bytes, or 6144 with redundant_metadata=none and sectors of 512 bytes
DOUBTFUL = 4096
#: the threshold is this fraction of what a blank zvol references.  The block of
#: the intent log is at most 0.17 of it, or 0.25 if the volume has copies=2 and
#: the blank zvol had copies=1
_SHARE = 4
#: bytes; the highest threshold, from the largest blank zvol measured (90112)
LARGEST = 90112 // _SHARE


@dataclass(frozen=True)
class Blank:
    """The measured size of a blank zvol.

    :ivar guid: the GUID of the zpool that it was measured in
    :ivar logical: bytes, as "logicalreferenced" reports them
    :ivar referenced: bytes on disk, as "referenced" reports them
    """

    guid: str
    logical: int
    referenced: int


class Thresholds:
    """The thresholds of one container.

    Each Container creates one and keeps it.  Only the thread of the event loop
    uses it.
    """

    def __init__(self, zpool: str) -> None:
        """Start without a measurement."""
        self._zpool = zpool
        self._blank: Blank | None = None

    def _valid(self) -> Blank | None:
        """Return the measurement, if it is of the zpool with that name now."""
        blank = self._blank
        if blank is not None and blank.guid != importexport.guid(self._zpool):
            return None
        return blank

    @property
    def measured(self) -> bool:
        """Whether this process has measured a blank zvol in the zpool."""
        return self._valid() is not None

    @property
    def limits(self) -> Limits:
        """The numbers that the channel programs compare with."""
        blank = self._valid()
        if blank is None:
            return Limits(UNMEASURED, DOUBTFUL, LARGEST)
        unmodified = min(blank.referenced // _SHARE, LARGEST)
        return Limits(unmodified, DOUBTFUL, LARGEST, blank.logical)

    async def measure(self, dataset: str) -> None:
        """Measure a zvol that was just created, unless one was measured before.

        :param dataset: the zvol, to which nothing was written
        :raises ZfsError: if ZFS refuses
        """
        guid = importexport.guid(self._zpool)
        if self.measured or guid is None:
            return
        measured = await programs.measure(dataset)
        self._blank = Blank(guid, measured.logical, measured.referenced)
