# SPDX-License-Identifier: BSD-2-Clause
"""Types through which pools, volumes and the parts of volumes use each other.

A pool creates volumes, and a volume reads what all volumes of the pool share.
A volume creates its parts (content, lifecycle, transfers, view), and they read
the attributes that qubesd set on the volume.  Both sides import the types in
this module instead of each other.  So there is no cycle of imports.
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
    #: the dataset below which the datasets of qubes are
    qubes_root: str
    #: block size of new volumes, in bytes
    blocksize: int
    #: whether a clone that start() made is kept after stop()
    forensics: bool

    @property
    def zpool(self) -> str:
        """The name of the zpool that the container is in."""

    @property
    def store(self) -> Container:
        """The state of the container in this process."""

    @property
    def space(self) -> Space:
        """The used and available space."""

    async def first_use(self) -> None:
        """Collect garbage of earlier processes at the first change."""

    async def must_be_allowed(self) -> None:
        """Check the properties of the datasets in the container.

        :raises Refused: if a property has a value that is not allowed
        """

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        """Check that the key is loaded.

        :param batch: the batch of the operation
        :raises Locked: if the key is not loaded
        """

    async def unlock(
        self, qube: str | None = None, app: Application | None = None
    ) -> None:
        """Load the key; ask the user for the passphrase if needed.

        :param qube: name of the qube that needs the pool
        :param app: the application object of that qube
        """

    async def encryption_root(self) -> str | None:
        """Return the encryption root of the volumes; None: not encrypted.

        A clone has the same encryption root as its origin.
        """

    def check_container(self, state: VolumeState) -> None:
        """Check that *state* was read from a container of this pool.

        :raises StoragePoolException: if it was not
        """

    def note_use(self) -> None:
        """Note the end of an operation, from which the key timer counts."""

    def clones_of(self, vid: str) -> "list[Volume]":
        """Return the volumes that are clones of the volume *vid*."""

    def enlist(self, volume: "Volume") -> None:
        """List the object of a volume that a qube uses."""

    def unlist(self, vid: str) -> None:
        """Drop the object of the volume *vid*, which was removed."""

    async def wait_until_idle(self, vid: str) -> None:
        """Wait until the volume *vid* is not being prepared."""


class Volume(Protocol):
    """A volume, as its parts and other volumes see it.

    qubesd sets the attributes.  The methods are those that a volume, its parts
    and its source call.
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
    #: name of the qube that has the volume; None if no qube has it
    qube: str | None
    #: the application object of that qube; None if no qube has the volume
    app: Application | None

    @property
    def size(self) -> int:
        """The size that a qube sees, in bytes."""

    @property
    def where(self) -> VolumeName:
        """The names of the volume in ZFS.

        :raises BadName: if the vid cannot be a name in ZFS
        """

    @property
    def commits(self) -> int:
        """The number of commits by this object."""

    @property
    def is_prepared(self) -> bool:
        """Whether the volume is prepared."""

    def is_running(self) -> bool:
        """Return whether a qube uses the volume."""

    def operation(self, action: str) -> AbstractAsyncContextManager[Operation]:
        """Run one operation under the lock of the volume.

        :param action: for the message if it fails: "Cannot <action> <vid> ..."
        """

    def committed(
        self, batch: Batch | None = None
    ) -> AbstractAsyncContextManager[str]:
        """Return a context that has the snapshot of the committed state.

        A clone of the snapshot must be made inside the context.

        :param batch: the batch of the operation that clones it
        """

    async def discard_prepared(self) -> None:
        """Destroy prepared content, because the source was committed."""

    async def exists(self) -> bool:
        """Return whether the volume has a generation on disk."""
