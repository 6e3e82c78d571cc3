# SPDX-License-Identifier: BSD-2-Clause
"""What the parts of this layer require of each other, as types.

A pool creates volumes, and a volume asks its pool for what all volumes there
share.  A volume creates its parts (content, lifecycle, transfers, view), and
they ask the volume for what qubesd set on it.  Each side of such a pair imports
the types here and not the other side, so imports form no cycle.
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ..store.container import Container
from ..store.naming import VolumeName
from ..store.space import Space
from ..store.state import VolumeState
from ..zfs.batch import Batch
from .admin import Application
from .operations import Operation


class Pool(Protocol):
    """The pool of a volume, as the volume and its parts see it."""

    name: str
    #: the dataset that the pool owns
    container: str
    #: the qubes root: the dataset below which the qubes' datasets are
    qubes_root: str
    #: bytes; of the volumes that are created from now on
    blocksize: int
    #: whether clones made at start are kept when their qube stops
    forensics: bool

    @property
    def zpool(self) -> str:
        """The zpool that the container is in."""

    @property
    def store(self) -> Container:
        """The container, as this process knows it."""

    @property
    def space(self) -> Space:
        """Used and available bytes."""

    async def first_use(self) -> None:
        """Collect what an earlier process left; each change starts with it."""

    async def must_be_allowed(self) -> None:
        """:raises policy.Refused: if the disk has a property not allowed"""

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        """:raises Locked: if the key is not loaded"""

    async def unlock(
        self, qube: str | None = None, app: Application | None = None
    ) -> None:
        """Load the key; the user may be asked for the passphrase."""

    async def encryption_root(self) -> str | None:
        """Return what a clone shares with its origin; None: not encrypted."""

    def check_container(self, state: VolumeState) -> None:
        """:raises StoragePoolException: unless the container is the pool's"""

    def note_use(self) -> None:
        """Note the end of an operation after which the key may be idle."""

    def clones_of(self, vid: str) -> "list[Volume]":
        """Return the volumes that are clones of the volume *vid*."""

    def unlist(self, vid: str) -> None:
        """Forget the volume *vid*, which was removed."""

    async def wait_until_idle(self, vid: str) -> None:
        """Wait until the volume *vid* is not being prepared."""


class Volume(Protocol):
    """A volume, as its parts and other volumes see it.

    The attributes are qubesd's; the methods are what a volume and its source
    require of each other.
    """

    #: ``<qube>/<volume>``
    vid: str
    #: "private", "root", "volatile" ...
    name: str
    pool: Pool
    rw: bool
    save_on_stop: bool
    snap_on_start: bool
    snap_on_start_forensics: bool
    revisions_to_keep: int
    snapshots_disabled: bool
    source: "Volume | None"
    #: name of the qube that has it; None if it is only known from the disk
    qube: str | None
    #: qubesd's application object; None likewise
    app: Application | None

    @property
    def size(self) -> int:
        """Bytes that a qube sees."""

    @property
    def where(self) -> VolumeName:
        """Its names in ZFS; :raises BadName: if the vid cannot be one."""

    @property
    def commits(self) -> int:
        """How often this object has changed the committed state."""

    @property
    def is_prepared(self) -> bool:
        """Whether it is prepared for its next start."""

    def is_running(self) -> bool:
        """Return whether a qube uses it."""

    def operation(self, action: str) -> AbstractAsyncContextManager[Operation]:
        """Run one operation; no other operation of the volume runs then."""

    def committed(
        self, batch: Batch | None = None
    ) -> AbstractAsyncContextManager[str]:
        """Return the snapshot that is the committed state, to clone from.

        :param batch: of the operation that clones it
        """

    async def discard_prepared(self) -> None:
        """Destroy what is prepared: its source has another state."""

    async def exists(self) -> bool:
        """Return whether it has content on disk."""
