# SPDX-License-Identifier: BSD-2-Clause
"""Names of datasets, properties and snapshots: build, parse and check them.

Pure functions and values; nothing here asks ZFS.  Channel programs and
libzfs_core do not check names: ``zfs.sync.snapshot("pool/v@")`` succeeds on
OpenZFS 2.3.9.  So every name that reaches them was built or checked here.
"""

import re
from dataclasses import dataclass

from . import messages

#: of all user properties of this driver
PREFIX = "qubes-storage-zfs:"
#: on the container: the name of the pool that has claimed it
CLAIM = PREFIX + "pool"
#: on a qube's dataset, followed by the name of a volume: its pointer
POINTER = PREFIX + "current."
#: on a qube's dataset, followed by the name of a volume: the snapshot that is
#: its committed state, relative to the qube's dataset
COMMITTED = PREFIX + "committed."
#: on every zvol of this driver: its holder mark
HOLDER = PREFIX + "holder"
#: on a zvol: the properties that features of its qube set on it
TUNED = PREFIX + "tuned"
#: on the qubes root: an earlier version wrote there how many bytes a blank
#: volume uses.  Nothing reads it
BLANK = PREFIX + "blank"
#: the state before a migration: on the container, its layout; on a snapshot, its
#: former name; on a qube's dataset, attributes in qubes.xml; there, followed by
#: the name of a volume, the state of the volume
MIGRATED = PREFIX + "adopted"
MIGRATED_VOLUME = MIGRATED + "."
#: attribute of a pool in qubes.xml: the GUID of its zpool
ZPOOL_GUID = "zpool_guid"
#: attribute of a pool in qubes.xml: UUID of the qube in ask_password_domain
ASK_UUID = "ask_password_domain_uuid"
#: read by the udev rule of Qubes OS (core-admin-linux, zvol_is_qubes_volume): if
#: it is "true", dom0 neither probes a zvol nor offers it to qubes
UDEV_FLAG = "org.qubes-os:part-of-qvm-pool"
AUTO_SNAPSHOT = "com.sun:auto-snapshot"

#: bytes of a name: ZFS_MAX_DATASET_NAME_LEN without the NUL
NAME_MAX = 255
#: bytes for ".<generation>@r<revision>"
SUFFIX_ROOM = 24

_QUBE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_VOLUME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
_REVISION = re.compile(r"r([1-9][0-9]{0,17})\Z")
_COMPONENT = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_ZPOOL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
#: ZFS allows spaces, and a colon in the name of a zpool (valid_char() in
#: zfs_namecheck.c); this driver does not
_OF_ZFS = re.compile(r"[A-Za-z0-9_.: -]+\Z")
_RESERVED_ZPOOL = re.compile(
    r"(mirror|raidz|draid|spare|log\Z|cache\Z|special\Z|dedup\Z|c[0-9])"
)


class BadName(messages.Refused, ValueError):
    """A name that must not reach ZFS."""


@dataclass(frozen=True)
class VolumeName:
    """The name of a volume of a qube in a pool.

    :ivar qubes_root: the qubes root of the pool
    :ivar qube: the name of the qube
    :ivar volume: the name of the volume within the qube
    """

    qubes_root: str
    qube: str
    volume: str

    @property
    def dataset(self) -> str:
        """The dataset of the qube, which has the pointers of its volumes."""
        return f"{self.qubes_root}/{self.qube}"

    @property
    def pointer(self) -> str:
        """The property of :py:attr:`dataset` that is the pointer."""
        return POINTER + self.volume

    @property
    def committed(self) -> str:
        """The property of :py:attr:`dataset` that names the committed state."""
        return COMMITTED + self.volume

    def generation(self, number: int) -> str:
        """Return the dataset of the generation *number*."""
        suffix = f".{number}" if number else ""
        return f"{self.dataset}/{self.volume}{suffix}"

    def number_of(self, dataset: str) -> int | None:
        """Return the number of a generation; None if *dataset* is not one."""
        first = self.generation(0)
        if dataset == first:
            return 0
        head, _, tail = dataset.rpartition(".")
        if head == first and re.fullmatch(r"[1-9][0-9]{0,17}", tail):
            return int(tail)
        return None


def volume_of(qubes_root: str, dataset: str) -> VolumeName:
    """Return the volume that a zvol of a qube would be a generation of.

    :param dataset: a dataset two levels below *qubes_root*
    """
    qube, _, last = dataset.removeprefix(qubes_root + "/").partition("/")
    return VolumeName(qubes_root, qube, last.partition(".")[0])


def is_vid(text: str) -> bool:
    """Return whether *text* can be the vid of a volume, ``<qube>/<volume>``."""
    qube, slash, volume = text.partition("/")
    return bool(slash and _QUBE.match(qube) and _VOLUME.match(volume))


def volume_name(qubes_root: str, vid: str) -> VolumeName:
    """Parse a vid, ``<qube>/<volume>``, below *qubes_root*.

    :raises BadName: if no volume of this driver can have that vid
    """
    qube, _, volume = vid.partition("/")
    if not is_vid(vid):
        raise BadName(messages.BAD_VID, vid=vid)
    name = VolumeName(qubes_root, qube, volume)
    if len(name.generation(0)) > NAME_MAX - SUFFIX_ROOM:
        raise BadName(messages.LONG_VID, dataset=name.generation(0))
    return name


def revision_number(revision: str) -> int:
    """Return the number in the id of a revision, such as ``r12``.

    :raises BadName: if *revision* is not such an id
    """
    match = _REVISION.match(revision)
    if match is None:
        raise BadName(messages.BAD_REVISION, revision=revision)
    return int(match[1])


def dataset_name(text: str) -> str:
    """Return the name of a dataset that a user typed, after checking it.

    :raises BadName: with the reason
    """
    parts = text.split("/")
    if not all(_OF_ZFS.match(part) for part in parts) or any(
        part in {".", ".."} for part in parts
    ):
        raise BadName(messages.BAD_DATASET, name=text)
    if not parts[0][0].isalpha():
        raise BadName(messages.BAD_ZPOOL, name=parts[0])
    _check_supported(parts[0], _ZPOOL, "zpool", "- _ and .")
    for part in parts[1:]:
        _check_supported(part, _COMPONENT, "dataset", "- _ . and :")
    if len(text) > NAME_MAX - 2 * SUFFIX_ROOM:
        raise BadName(messages.LONG_NAME, kind="dataset", name=text)
    return text


def _check_supported(
    name: str, pattern: re.Pattern[str], kind: str, signs: str
) -> None:
    """Refuse a name that ZFS allows but this driver does not.

    :param kind: "zpool" or "dataset", for the message
    :param signs: the characters that are allowed, for the message
    :raises BadName: if *name* does not match *pattern*
    """
    if not pattern.match(name):
        raise BadName(
            messages.NAME_NOT_SUPPORTED, kind=kind, name=name, signs=signs
        )


def zpool_name(text: str) -> str:
    """Return the name of a zpool that a user typed, after checking it.

    ``zpool create -n`` accepts reserved names, so they are refused here.

    :raises BadName: with the reason
    """
    allowed = _OF_ZFS.match(text) and text[0].isalpha()
    if not allowed or _RESERVED_ZPOOL.match(text):
        raise BadName(messages.RESERVED_ZPOOL, name=text)
    _check_supported(text, _ZPOOL, "zpool", "- _ and .")
    if len(text) > 64:
        raise BadName(messages.LONG_NAME, kind="zpool", name=text)
    return text
