# SPDX-License-Identifier: BSD-2-Clause
"""Names: where a volume lives in ZFS, and what may be a name at all.

Pure functions and values; nothing here touches ZFS.  Channel programs and
libzfs_core do not check names (``zfs.sync.snapshot("pool/v@")`` succeeds on
OpenZFS 2.3.9), so no name reaches them that was not made or checked here.
"""

import re
from dataclasses import dataclass

from . import messages

#: user properties of ours
PREFIX = "qubes-storage-zfs:"
#: on the container: the Qubes pool it belongs to
CLAIM = PREFIX + "pool"
#: on a qube's dataset, with a volume's name behind it: which generation of
#: the volume is current
POINTER = PREFIX + "current."
#: on a qube's dataset, with a volume's name behind it: the snapshot that is
#: the volume's committed state, without the qube's dataset
COMMITTED = PREFIX + "committed."
#: on every zvol of ours: the process that made it
HOLDER = PREFIX + "holder"
#: on a zvol: what a qube's features set on it
TUNED = PREFIX + "tuned"
#: on the dataset below which the qubes' are; an earlier version wrote there
#: what a blank volume takes.  Nothing reads it
BLANK = PREFIX + "blank"
#: what was there before a pool was adopted: on its container, the layout; on a
#: qube's dataset, what qubes.xml said; with a volume's name behind it, what the
#: volume was; on a snapshot, its name
ADOPTED = PREFIX + "adopted"
ADOPTED_VOLUME = ADOPTED + "."
#: in qubes.xml, of a pool: the guid of its zpool
ZPOOL_GUID = "zpool_guid"
#: in qubes.xml, of a pool: the uuid of the qube in ask_password_domain
ASK_UUID = "ask_password_domain_uuid"
#: what Qubes' own udev rule looks for: with it set, dom0 neither probes nor
#: offers a zvol (core-admin-linux, zvol_is_qubes_volume)
UDEV_FLAG = "org.qubes-os:part-of-qvm-pool"
AUTO_SNAPSHOT = "com.sun:auto-snapshot"

#: ZFS allows 255 bytes for a name (ZFS_MAX_DATASET_NAME_LEN less the NUL)
NAME_MAX = 255
#: room for ".<generation>@r<revision>"
SUFFIX_ROOM = 24

_QUBE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_VOLUME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
_REVISION = re.compile(r"r([1-9][0-9]{0,17})\Z")
_COMPONENT = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_ZPOOL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
#: what ZFS allows and this driver does not: spaces anywhere, and a colon in
#: the name of a zpool (valid_char() in zfs_namecheck.c)
_OF_ZFS = re.compile(r"[A-Za-z0-9_.: -]+\Z")
_RESERVED_ZPOOL = re.compile(
    r"(mirror|raidz|draid|spare|log\Z|cache\Z|special\Z|dedup\Z|c[0-9])"
)


class BadName(messages.Refused, ValueError):
    """A name that must not reach ZFS."""


@dataclass(frozen=True)
class VolumeName:
    """One volume of one qube below the dataset that holds a pool's qubes.

    :ivar qubes_root: dataset below which the qubes' datasets are
    :ivar qube: the qube's name
    :ivar volume: the volume's name within the qube
    """

    qubes_root: str
    qube: str
    volume: str

    @property
    def dataset(self) -> str:
        """The qube's dataset; its properties point to current generations."""
        return f"{self.qubes_root}/{self.qube}"

    @property
    def pointer(self) -> str:
        """The user property on :py:attr:`dataset` naming the current one."""
        return POINTER + self.volume

    @property
    def committed(self) -> str:
        """The user property naming the snapshot that is the committed state."""
        return COMMITTED + self.volume

    def generation(self, number: int) -> str:
        """Name of the zvol that is the *number*-th generation."""
        suffix = f".{number}" if number else ""
        return f"{self.dataset}/{self.volume}{suffix}"

    def number_of(self, dataset: str) -> int | None:
        """Which generation of this volume *dataset* is; None if none."""
        first = self.generation(0)
        if dataset == first:
            return 0
        head, _, tail = dataset.rpartition(".")
        if head == first and re.fullmatch(r"[1-9][0-9]{0,17}", tail):
            return int(tail)
        return None


def volume_of(qubes_root: str, dataset: str) -> VolumeName:
    """Return the volume that *dataset*, two below *qubes_root*, would be of."""
    qube, _, last = dataset.removeprefix(qubes_root + "/").partition("/")
    return VolumeName(qubes_root, qube, last.partition(".")[0])


def is_vid(text: str) -> bool:
    """Return whether *text* can be the vid of a volume, ``<qube>/<volume>``."""
    qube, slash, volume = text.partition("/")
    return bool(slash and _QUBE.match(qube) and _VOLUME.match(volume))


def volume_name(qubes_root: str, vid: str) -> VolumeName:
    """Parse a vid, ``<qube>/<volume>``, below *qubes_root*.

    :raises BadName: if no volume of ours can have that vid
    """
    qube, _, volume = vid.partition("/")
    if not is_vid(vid):
        raise BadName(messages.BAD_VID, vid=vid)
    name = VolumeName(qubes_root, qube, volume)
    if len(name.generation(0)) > NAME_MAX - SUFFIX_ROOM:
        raise BadName(messages.LONG_VID, dataset=name.generation(0))
    return name


def revision_number(revision: str) -> int:
    """The number in a revision id such as ``r12``.

    :raises BadName: if *revision* is no revision id of ours
    """
    match = _REVISION.match(revision)
    if match is None:
        raise BadName(messages.BAD_REVISION, revision=revision)
    return int(match[1])


def dataset_name(text: str) -> str:
    """Check the name of a dataset given by a person.

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
    """:raises BadName: for a name that only ZFS allows"""
    if not pattern.match(name):
        raise BadName(
            messages.NAME_NOT_SUPPORTED, kind=kind, name=name, signs=signs
        )


def zpool_name(text: str) -> str:
    """Check the name of a zpool to be created.

    ``zpool create -n`` accepts reserved names and names in use, so this is
    checked before zpool is asked.

    :raises BadName: with the reason
    """
    allowed = _OF_ZFS.match(text) and text[0].isalpha()
    if not allowed or _RESERVED_ZPOOL.match(text):
        raise BadName(messages.RESERVED_ZPOOL, name=text)
    _check_supported(text, _ZPOOL, "zpool", "- _ and .")
    if len(text) > 64:
        raise BadName(messages.LONG_NAME, kind="zpool", name=text)
    return text
