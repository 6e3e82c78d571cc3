"""What is recorded of an adopted pool: in dom0, and on its disk.

Undoing changes qubes.xml and sets properties.  What it puts into qubes.xml is
recorded in dom0, in a file that only root can write to, before anything else
is changed.  So are the ZFS properties that adopt() found on the qubes root,
which the disk records as well: if they differ, nothing is undone.  What the
disk records may have been changed by anyone who had the disk: these properties,
the layout, the number of revisions of each volume and the old names of
snapshots.  Of these only known names with known values are accepted, as the
tables here have them; anything else ends undoing before anything is touched.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..store import messages, naming, policy
from ..zfs.text import SHOWN, printable
from . import files
from .steps import MADE, OLDER, THEIRS, UPSTREAM, Refused, Where, listed

#: root's alone
FOLDER = Path("/var/lib/qubes-storage-zfs")
VERSION = 1

#: what a pool was, and where its qubes' datasets were in the container
LAYOUTS = ((UPSTREAM, ""), (OLDER, ""), (OLDER, "vm"))

#: attributes of a volume in qubes.xml -> volume's name -> qube
Dropped = Mapping[str, Mapping[str, Mapping[str, str]]]

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")
_VOLUME_NAME = r"[a-z0-9][a-z0-9_-]{0,99}"
_BOOLEANS = ("True", "False")
_DROPPED = ("save_on_stop", "snap_on_start")
_GUID = re.compile(r"[0-9]{1,20}\Z")

#: properties of the qubes root -> values that it may get back
SETTINGS: Mapping[str, tuple[str | None, ...]] = {
    item.name: item.restorable for item in policy.SAFETY
}
#: properties of ours on a qube's dataset -> their values
_OF_A_QUBE = tuple(
    (re.compile(name + r"\Z"), re.compile(value + r"\Z"))
    for name, value in (
        (re.escape(naming.POINTER) + _VOLUME_NAME, r"[0-9]{1,18}( [ -~]*)?"),
        (
            re.escape(naming.COMMITTED) + _VOLUME_NAME,
            _VOLUME_NAME + r"(\.[0-9]{1,18})?@[rs][0-9]{1,18}",
        ),
        (
            re.escape(naming.ADOPTED_VOLUME) + _VOLUME_NAME,
            r"scratch|[0-9]{1,9} [0-9]{1,19} (ro|rw)",
        ),
    )
)
_REVISION = re.compile(r"r[1-9][0-9]{0,17}\Z")


@dataclass(frozen=True)
class Layout:
    """The record on a container.

    :ivar was: UPSTREAM or OLDER
    :ivar old: where the qubes' datasets were, relative to the container
    :ivar settings: properties of the qubes root as they were; as in SETTINGS
    """

    was: str
    old: str
    settings: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The record in dom0.

    :ivar container: dataset of the pool
    :ivar zpool_guid: of its zpool
    :ivar noted: whether adopting wrote that GUID into qubes.xml
    :ivar dropped: attributes of volumes that adopting took out of qubes.xml
    :ivar settings: properties of the qubes root as they were, as in Layout;
        None: not recorded, by an earlier version
    """

    pool: str
    container: str
    zpool_guid: str | None
    was: str
    old: str
    noted: bool
    dropped: Dropped
    settings: Mapping[str, str | None] | None = None


def refusal(dataset: str, name: str, value: str) -> str:
    """The sentence about a property that was not written by adopting."""
    return messages.RECORD_REFUSED.format(
        dataset=printable(dataset, SHOWN),
        property=printable(name, SHOWN),
        value=printable(value, SHOWN),
    )


# --- on the disk


def layout_of(container: str, text: str) -> Layout:
    """Parse the record on *container*.

    :raises Refused: if it has anything that adopting does not write
    """
    value = _loaded(text)
    settings = value.get("set") if isinstance(value, dict) else None
    if (
        isinstance(settings, dict)
        and value.keys() == {"was", "old", "set"}
        and (value["was"], value["old"]) in LAYOUTS
    ):
        for name, before in settings.items():
            if before not in SETTINGS.get(name, ()):
                shown = f"{name}={before}"
                raise Refused(refusal(container, naming.ADOPTED, shown))
        return Layout(value["was"], value["old"], settings)
    raise Refused(refusal(container, naming.ADOPTED, text))


def strangers(found: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what qubes' datasets record and adopting does not write.

    :param found: what adoptable.lua gives
    """
    for each in listed(found["moved"]):
        own = each.get("own", {})
        for name, value in sorted(own.items()):
            if not _is_known(name, value):
                yield refusal(each["name"], name, value)
        for zvol in listed(each.get("inner", {})):
            yield from _strange_snapshots(zvol)


def _is_known(name: str, value: str) -> bool:
    if name == naming.ADOPTED:
        return _is_dropped_of_a_qube(_loaded(value))
    return any(
        names.match(name) and values.match(value)
        for names, values in _OF_A_QUBE
    )


def _strange_snapshots(zvol: Mapping[str, Any]) -> Iterator[str]:
    """What snapshots record, and old names that two of them would get."""
    if zvol["type"] != "volume":
        return
    snapshots = listed(zvol["snapshots"])
    taken = {s["name"] for s in snapshots if naming.ADOPTED not in s["own"]}
    for snapshot in snapshots:
        was = snapshot["own"].get(naming.ADOPTED)
        if was is None:
            continue
        fits = was == MADE or (THEIRS.match(was) and was not in taken)
        if not fits or not _REVISION.match(snapshot["name"]):
            full = f"{zvol['name']}@{snapshot['name']}"
            yield refusal(full, naming.ADOPTED, was)
        taken.add(was if was != MADE else "")


def _is_dropped_of_a_qube(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(_VOLUME_NAME, name)
        and isinstance(attributes, dict)
        and all(
            key in _DROPPED and text in _BOOLEANS
            for key, text in attributes.items()
        )
        for name, attributes in value.items()
    )


def _loaded(text: str | bytes) -> Any:
    """The JSON in *text*; None if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- in dom0


def _path(pool: str) -> Path:
    """:raises Refused: if the pool's name cannot name a file"""
    if not _POOL_NAME.match(pool):
        raise Refused(
            f"the pool's name {pool!r} has more than letters, digits, - _ and"
            " ., so that nothing can be recorded under it; adopting is not"
            " possible"
        )
    return FOLDER / f"adopted-{pool}.json"


def save(saved: Saved) -> None:
    """Write the record; it is on disk when this returns.

    :raises Refused: if it cannot be written
    """
    path = _path(saved.pool)
    text = json.dumps({"version": VERSION, **asdict(saved)}, indent=1)
    try:
        files.private_folder(FOLDER)
        files.replace(path, text.encode("ascii") + b"\n")
    except OSError as exc:
        raise Refused(
            f"{path}, which undoing needs, cannot be written: {exc}"
        ) from exc


def load(pool: str) -> Saved | None:
    """Return the record; None if there is none.

    :raises Refused: if there is one that cannot be used
    """
    path = _path(pool)
    try:
        text, status = files.read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Refused(f"{path} cannot be read: {exc}") from exc
    value = _loaded(text)
    if status.st_mode & 0o022 or not _is_saved(pool, value):
        raise Refused(
            f"{path} is not what 'qvm-zfs adopt' wrote there; undo by hand"
            " with the copy of qubes.xml from before, see moving.md in the"
            " package's documentation"
        )
    del value["version"]
    return Saved(**value)


def _is_saved(pool: str, value: Any) -> bool:
    names = {"version", *Saved.__dataclass_fields__}
    if not isinstance(value, dict) or value.keys() | {"settings"} != names:
        return False
    guid, dropped = value["zpool_guid"], value["dropped"]
    settings = value.get("settings")
    return (
        value["version"] == VERSION
        and value["pool"] == pool
        and isinstance(value["container"], str)
        and (guid is None or isinstance(guid, str) and bool(_GUID.match(guid)))
        and (value["was"], value["old"]) in LAYOUTS
        and isinstance(value["noted"], bool)
        and isinstance(dropped, dict)
        and all(map(_is_dropped_of_a_qube, dropped.values()))
        and (settings is None or _are_settings(settings))
    )


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        before in SETTINGS.get(name, ()) for name, before in value.items()
    )


def check_same(
    place: Where, on_disk: Layout, imported: str | None, saved: Saved | None
) -> None:
    """Compare what the disk and dom0 record of the adoption of *place*.

    :param imported: GUID of the zpool that *place* is in
    :param saved: the record in dom0; None if there is none
    :raises Refused: if they are not of one adoption
    """
    recorded = (on_disk.was, on_disk.old)
    if saved is None:
        same = recorded == (place.was, place.inside)
    else:
        same = (
            recorded == (saved.was, saved.old) == (place.was, place.inside)
            and saved.container == place.container
            and saved.zpool_guid in (None, imported)
            and saved.settings in (None, on_disk.settings)
        )
    if not same:
        raise Refused(
            messages.OTHER_ADOPTION.format(
                pool=place.pool, container=place.container
            )
        )


def forget(pool: str) -> None:
    """Delete the record of *pool*, whose adoption was undone."""
    files.remove(_path(pool))
