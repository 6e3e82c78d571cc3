# SPDX-License-Identifier: BSD-2-Clause
"""The records of a migration, on its disk and in dom0.

Undoing a migration changes qubes.xml and sets ZFS properties.

The values for qubes.xml are recorded in dom0, before any other change, in a
file that only root can write to.  The file also has the former properties of
the qubes root.  The disk has them as well; if the two differ, nothing is
undone.

The records on the disk are the layout, these properties, the number of
revisions of each volume and the former names of snapshots.  Another machine may
have changed them.  So only names and values that a migration writes are
accepted.  If there is any other, undoing stops before its first change.

Each record is a type.  ``str()`` returns the text on disk, and parse() reads it
or raises NotARecord.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from ..store import messages, naming, policy
from ..zfs.errors import Failure
from ..zfs.text import SHOWN, printable
from .disk import Dataset, Disk
from .errors import NotARecord, Refused
from .pools import MigratingPool, Origin

#: the version of the file in dom0
VERSION = 1
#: instead of a former name: the migration created the snapshot
MADE = "-"
#: snapshots of upstream's driver: committed states and revisions
UPSTREAM_SNAPSHOT = re.compile(
    r"(qubes-clean[A-Za-z0-9_.-]*|qubes:[A-Za-z0-9_.:-]+)\Z"
)
#: origins of pools, and where the qubes' datasets were in the container
LAYOUTS = ((Origin.UPSTREAM, ""), (Origin.OLDER, ""), (Origin.OLDER, "vm"))

#: property of the qubes root -> its former value; None: none was set
Settings = Mapping[str, str | None]
#: volume's name -> attribute in qubes.xml -> its value
Attributes = Mapping[str, Mapping[str, str]]

_VOLUME_NAME = r"[a-z0-9][a-z0-9_-]{0,99}"
_BOOLEANS = ("True", "False")
_DROPPED = ("save_on_stop", "snap_on_start")
_GUID = re.compile(r"[0-9]{1,20}\Z")
_REVISION = re.compile(r"r[1-9][0-9]{0,17}\Z")

#: property of the qubes root -> values that undoing may restore
SETTINGS: Mapping[str, tuple[str | None, ...]] = {
    item.name: item.restorable for item in policy.SAFETY
}


def _loads(text: str | bytes) -> object:
    """Return the value of a JSON text.

    :raises NotARecord: if it is not JSON
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise NotARecord(str(text)) from exc
    return value


def _check_settings(settings: object) -> bool:
    """Return whether *settings* is a table of restorable values.

    :raises NotARecord: naming the first value that is not restorable
    """
    if not isinstance(settings, dict):
        return False
    for name, before in settings.items():
        if before not in SETTINGS.get(name, ()):
            raise NotARecord(f"{name}={before}")
    return True


def _are_attributes(value: object) -> TypeGuard[Attributes]:
    return isinstance(value, dict) and all(
        re.fullmatch(_VOLUME_NAME, name)
        and isinstance(attributes, dict)
        and all(
            key in _DROPPED and text in _BOOLEANS
            for key, text in attributes.items()
        )
        for name, attributes in value.items()
    )


# --- on the disk


@dataclass(frozen=True)
class DiskRecord:
    """The record on a container.

    :ivar inside: where the qubes' datasets were, relative to the container
    :ivar settings: the former settings of the qubes root
    """

    origin: Origin
    inside: str
    settings: Settings = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "DiskRecord":
        """Parse the record.

        :raises NotARecord: if it has anything that a migration does not write
        """
        value = _loads(text)
        if (
            isinstance(value, dict)
            and value.keys() == {"was", "old", "set"}
            and (value["was"], value["old"]) in LAYOUTS
            and _check_settings(value["set"])
        ):
            return cls(Origin(value["was"]), value["old"], value["set"])
        raise NotARecord(text)

    def __str__(self) -> str:
        """Return the text that parse() accepts."""
        return json.dumps(
            {
                "was": self.origin,
                "old": self.inside,
                "set": dict(self.settings),
            }
        )


@dataclass(frozen=True)
class QubeRecord:
    """The record on a qube's dataset: attributes removed from qubes.xml.

    Undoing does not use it, because the record in dom0 has them as well.
    """

    attributes: Attributes

    @classmethod
    def parse(cls, text: str) -> "QubeRecord":
        """Parse the record.

        :raises NotARecord: if it has anything that a migration does not write
        """
        value = _loads(text)
        if not _are_attributes(value):
            raise NotARecord(text)
        return cls(value)

    def __str__(self) -> str:
        """Return the text that parse() accepts."""
        return json.dumps({k: dict(v) for k, v in self.attributes.items()})


@dataclass(frozen=True)
class VolumeRecord:
    """The record of one volume, on its qube's dataset.

    :ivar revisions: the number of snapshots that became revisions
    :ivar written: bytes written after the newest of them was taken
    :ivar is_read_only: whether the zvol was readonly=on
    """

    revisions: int
    written: int
    is_read_only: bool

    #: the record of a disposable volume: there is nothing to restore
    DISPOSABLE = "scratch"
    _PATTERN = re.compile(r"([0-9]{1,9}) ([0-9]{1,19}) (ro|rw)\Z")

    @classmethod
    def parse(cls, text: str) -> "VolumeRecord | None":
        """Parse the record; return None for a disposable volume.

        :raises NotARecord: if a migration does not write it
        """
        if text == cls.DISPOSABLE:
            return None
        match = cls._PATTERN.match(text)
        if match is None:
            raise NotARecord(text)
        return cls(int(match[1]), int(match[2]), match[3] == "ro")

    def __str__(self) -> str:
        """Return the text that parse() accepts."""
        access = "ro" if self.is_read_only else "rw"
        return f"{self.revisions} {self.written} {access}"


#: patterns of properties that the driver sets on a qube's dataset
_POINTER = re.compile(re.escape(naming.POINTER) + _VOLUME_NAME + r"\Z")
_POINTER_VALUE = re.compile(r"[0-9]{1,18}( [ -~]*)?\Z")
_COMMITTED = re.compile(re.escape(naming.COMMITTED) + _VOLUME_NAME + r"\Z")
_COMMITTED_VALUE = re.compile(
    _VOLUME_NAME + r"(\.[0-9]{1,18})?@[rs][0-9]{1,18}\Z"
)
_VOLUME_RECORD = re.compile(
    re.escape(naming.MIGRATED_VOLUME) + _VOLUME_NAME + r"\Z"
)


def disk_record(container: str, text: str) -> DiskRecord:
    """Parse the record on *container*.

    :raises Refused: if it has anything that a migration does not write
    """
    try:
        return DiskRecord.parse(text)
    except NotARecord as exc:
        failure = _unexpected(container, naming.MIGRATED, exc.part)
        raise Refused(str(failure)) from exc


def unexpected(disk: Disk) -> Iterator[Failure]:
    """Yield a failure for each record that a migration does not write."""
    for qube in disk.moved:
        for name, value in sorted(qube.own.items()):
            if not _is_expected(name, value):
                yield _unexpected(qube.name, name, value)
        for zvol in qube.children:
            yield from _unexpected_snapshots(zvol)


def _unexpected(dataset: str, name: str, value: str) -> Failure:
    return messages.Refused(
        messages.RECORD_REFUSED,
        dataset=printable(dataset, SHOWN),
        property=printable(name, SHOWN),
        value=printable(value, SHOWN),
    )


def _is_expected(name: str, value: str) -> bool:
    """Return whether a property of a qube's dataset is one of this driver's."""
    try:
        if name == naming.MIGRATED:
            QubeRecord.parse(value)
        elif _VOLUME_RECORD.match(name):
            VolumeRecord.parse(value)
        elif _POINTER.match(name):
            return bool(_POINTER_VALUE.match(value))
        else:
            is_committed = _COMMITTED.match(name)
            return bool(is_committed and _COMMITTED_VALUE.match(value))
    except NotARecord:
        return False
    return True


def _unexpected_snapshots(zvol: Dataset) -> Iterator[Failure]:
    """Yield failures of snapshots whose old names cannot be restored."""
    if not zvol.is_volume:
        return
    own = [s for s in zvol.snapshots if naming.MIGRATED in s.own]
    names = {s.name for s in zvol.snapshots if naming.MIGRATED not in s.own}
    for snapshot in own:
        before = snapshot.own[naming.MIGRATED]
        is_free = UPSTREAM_SNAPSHOT.match(before) and before not in names
        if not _REVISION.match(snapshot.name) or not (
            before == MADE or is_free
        ):
            full = f"{zvol.name}@{snapshot.name}"
            yield _unexpected(full, naming.MIGRATED, before)
        if before != MADE:
            names.add(before)


# --- in dom0


@dataclass(frozen=True)
class Dom0Record:
    """The record in dom0.

    :ivar container: the dataset of the container
    :ivar zpool_guid: the GUID of its zpool; None: it was not recorded
    :ivar inside: where the qubes' datasets were, relative to the container
    :ivar guid_is_new: whether the migration wrote that GUID to qubes.xml
    :ivar dropped: qube -> attributes that the migration removed from qubes.xml
    :ivar settings: the former settings of the qubes root; None: an earlier
        version did not record them
    """

    pool: str
    container: str
    zpool_guid: str | None
    origin: Origin
    inside: str
    guid_is_new: bool
    dropped: Mapping[str, Attributes]
    settings: Settings | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> "Dom0Record":
        """Parse the record.

        :raises NotARecord: if a migration does not write it
        """
        value = _loads(text)
        if not isinstance(value, dict) or not _is_dom0_record(value):
            raise NotARecord(str(text))
        return cls(
            pool=value["pool"],
            container=value["container"],
            zpool_guid=value["zpool_guid"],
            origin=Origin(value["was"]),
            inside=value["old"],
            guid_is_new=value["noted"],
            dropped=value["dropped"],
            settings=value.get("settings"),
        )

    def __str__(self) -> str:
        """Return the text that parse() accepts."""
        value = {
            "version": VERSION,
            "pool": self.pool,
            "container": self.container,
            "zpool_guid": self.zpool_guid,
            "was": self.origin,
            "old": self.inside,
            "noted": self.guid_is_new,
            "dropped": self.dropped,
            "settings": self.settings,
        }
        return json.dumps(value, indent=1)


_KEYS: Sequence[str] = (
    *("version", "pool", "container", "zpool_guid", "was", "old", "noted"),
    *("dropped", "settings"),
)


def _is_dom0_record(value: Mapping[str, object]) -> bool:
    """Return whether *value* is a record.

    :raises NotARecord: if a setting is not restorable
    """
    if value.keys() | {"settings"} != {*_KEYS}:
        return False
    guid, dropped = value["zpool_guid"], value["dropped"]
    settings = value.get("settings")
    return (
        value["version"] == VERSION
        and isinstance(value["pool"], str)
        and isinstance(value["container"], str)
        and (guid is None or isinstance(guid, str) and bool(_GUID.match(guid)))
        and (value["was"], value["old"]) in LAYOUTS
        and isinstance(value["noted"], bool)
        and isinstance(dropped, dict)
        and all(map(_are_attributes, dropped.values()))
        and (settings is None or _check_settings(settings))
    )


def check_same(
    pool: MigratingPool,
    on_disk: DiskRecord,
    imported: str | None,
    in_dom0: Dom0Record | None,
) -> None:
    """Compare the records of a migration, on disk and in dom0.

    :param imported: GUID of the zpool that *pool* is in
    :param in_dom0: None if dom0 has none
    :raises Refused: if they are not of one migration
    """
    layout = (pool.origin, pool.inside)
    is_same = (on_disk.origin, on_disk.inside) == layout
    if in_dom0 is not None:
        is_same = (
            is_same
            and (in_dom0.origin, in_dom0.inside) == layout
            and in_dom0.container == pool.container
            and in_dom0.zpool_guid in (None, imported)
            and in_dom0.settings in (None, on_disk.settings)
        )
    if not is_same:
        raise Refused(
            messages.OTHER_ADOPTION, pool=pool.pool, container=pool.container
        )
