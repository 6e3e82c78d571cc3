"""qubes.xml, for what qubesd cannot be asked to change.

No call of the Admin API gives a volume another vid or pool, or a pool another
driver (qubes/api/admin.py), and admin.pool.Remove refuses a pool with volumes
in it.  So the file is rewritten, while qubesd is stopped: it reads the file
when it starts, and writes what it knows over it when it runs.
"""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ..migrate import files
from ..migrate.records import Dropped
from ..migrate.steps import Known, Refused, Where
from ..store.naming import ZPOOL_GUID

#: where qubesd listens (qubes/api/admin.py)
SOCKET = "/var/run/qubesd.sock"


def qubesd_runs() -> bool:
    """Whether something listens where qubesd does."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(SOCKET)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


class Store:
    """A qubes.xml, read once.

    :raises Refused: if it cannot be read
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text, _ = files.read(path)
            keep = ElementTree.TreeBuilder(insert_comments=True)
            parser = ElementTree.XMLParser(target=keep)
            self._root = ElementTree.fromstring(self._text, parser)
            self._before = ElementTree.tostring(self._root)
        except (OSError, ElementTree.ParseError) as exc:
            raise Refused(f"{path} cannot be read: {exc}") from exc

    def pool(self, name: str) -> ElementTree.Element:
        """:raises Refused: if there is none of that name"""
        for pool in self._root.iterfind("./pools/pool"):
            if pool.get("name") == name:
                return pool
        raise Refused(f"{self.path} has no pool {name}")

    def _elements(
        self, pool: str
    ) -> Iterator[tuple[str, str, ElementTree.Element]]:
        """Qube, its class and the element of each volume in a pool."""
        for qube in self._root.iterfind("./domains/domain"):
            name = qube.findtext("./properties/property[@name='name']", "")
            for volume in qube.iterfind("./volume-config/volume"):
                if volume.get("pool") == pool:
                    yield name, qube.get("class", ""), volume

    def volumes(self, pool: str) -> list[Known]:
        return [
            Known(qube, klass, dict(volume.attrib))
            for qube, klass, volume in self._elements(pool)
        ]

    def dropped(self, place: Where) -> Dropped:
        """The attributes that adopt() will take out: qube -> volume -> them.

        :raises Refused: if one is no truth value
        """
        found: dict[str, dict[str, dict[str, str]]] = {}
        for qube, _, volume in self._elements(place.pool):
            taken = {
                key: value
                for key in place.dropped
                if (value := volume.get(key)) is not None
            }
            for key, value in taken.items():
                if value not in ("True", "False"):
                    raise Refused(
                        f"{self.path} has {key}={value!r} for a volume of"
                        f" {qube}; it must be True or False"
                    )
            if taken:
                name = volume.get("vid", "").rpartition("/")[2]
                found.setdefault(qube, {})[name] = taken
        return found

    def adopt(self, place: Where, zpool_guid: str | None = None) -> None:
        """Change it to what it is once *place* is adopted; write() is next.

        :param zpool_guid: of the pool's zpool, to be noted; None: not known
        """
        pool = self.pool(place.pool)
        pool.set("driver", place.driver)
        if zpool_guid is not None:
            pool.attrib.setdefault(ZPOOL_GUID, zpool_guid)
        for _, _, volume in self._elements(place.pool):
            for key in ("vid", "source"):
                value = volume.get(key)
                if value is not None:
                    volume.set(key, value.removeprefix(place.old + "/"))
            for key in place.dropped:
                volume.attrib.pop(key, None)

    def undo(
        self, place: Where, driver: str, dropped: Dropped, noted: bool = True
    ) -> None:
        """The reverse.  Nothing of it comes from a disk.

        :param driver: the pool's, as it was
        :param dropped: what dropped() returned before
        :param noted: whether adopt() noted the GUID of the zpool
        """
        pool = self.pool(place.pool)
        pool.set("driver", driver)
        if noted:
            pool.attrib.pop(ZPOOL_GUID, None)
        for qube, _, volume in self._elements(place.pool):
            vid = volume.get("vid", "")
            if vid.startswith(place.old + "/"):
                # done before: this is repeated
                continue
            for key in ("vid", "source"):
                value = volume.get(key)
                if value is not None:
                    volume.set(key, f"{place.old}/{value}")
            name = vid.rpartition("/")[2]
            before = dropped.get(qube, {}).get(name, {})
            for key in place.dropped:
                volume.attrib.pop(key, None)
                if key in before:
                    volume.set(key, before[key])

    def changes(self) -> Iterator[str]:
        """Every attribute that write() will change, a line each."""
        before = ElementTree.fromstring(self._before).iter()
        after = (e for e in self._root.iter() if isinstance(e.tag, str))
        for old, new in zip(before, after, strict=True):
            name = f"{new.tag} {old.get('vid') or old.get('name', '')}"
            for key in sorted({*old.keys(), *new.keys()}):
                value = new.get(key)
                if value is None:
                    yield f"{name}: without {key}={old.get(key)}"
                elif value != old.get(key):
                    yield f"{name}: {key}={value}"

    def write(self) -> Path | None:
        """Replace the file at once.

        :return: the copy of the file from before; None if nothing changed
        :raises Refused: if it was changed meanwhile, or cannot be written
        """
        if ElementTree.tostring(self._root) == self._before:
            return None
        text = ElementTree.tostring(self._root, encoding="unicode").encode()
        try:
            now, status = files.read(self.path)
            if qubesd_runs() or now != self._text:
                raise Refused(
                    f"{self.path} was not written: qubesd runs again; stop it"
                    " with 'sudo systemctl stop qubesd', and repeat this"
                    " command"
                )
            kept = self.path.with_name(
                time.strftime(f"{self.path.name}.%Y-%m-%d-%H%M%S")
            )
            kept = files.create_beside(kept, now, status)
            files.replace(self.path, text + b"\n", status)
        except OSError as exc:
            raise Refused(f"{self.path} cannot be written: {exc}") from exc
        return kept
