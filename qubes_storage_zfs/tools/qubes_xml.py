# SPDX-License-Identifier: BSD-2-Clause
"""Read and change qubes.xml, for changes that qubesd does not offer.

No call of the Admin API changes the vid or pool of a volume, or the driver of a
pool (qubes/api/admin.py), and admin.pool.Remove refuses a pool with volumes in
it.  So adopt rewrites the file while qubesd is stopped: qubesd reads the file
when it starts, and overwrites it while it runs.
"""

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from ..migrate import files
from ..migrate.errors import Refused
from ..migrate.pools import ConfiguredVolume, MigratingPool
from ..migrate.records import Attributes
from ..store import messages
from ..store.naming import ZPOOL_GUID

#: socket of qubesd (qubes/api/admin.py)
SOCKET = "/var/run/qubesd.sock"


def qubesd_runs() -> bool:
    """Return whether a process listens on qubesd's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(SOCKET)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


class QubesXml:
    """The content of a qubes.xml, read once, when the object is created.

    adopt() and undo() change the content in memory; write() replaces the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        :raises Refused: if it cannot be read
        """
        self.path = path
        try:
            self._text, _ = files.read(path)
            builder = ElementTree.TreeBuilder(insert_comments=True)
            parser = ElementTree.XMLParser(target=builder)
            self._root = ElementTree.fromstring(self._text, parser)
            self._before = ElementTree.tostring(self._root)
        except (OSError, ElementTree.ParseError) as exc:
            raise Refused(
                messages.FILE_NOT_READ, path=path, reason=exc
            ) from exc

    def pool(self, name: str) -> ElementTree.Element:
        """Return the element of a pool.

        :raises Refused: if there is no pool of that name
        """
        for pool in self._root.iterfind("./pools/pool"):
            if pool.get("name") == name:
                return pool
        raise Refused(messages.XML_NO_POOL, path=self.path, pool=name)

    def _elements(
        self, pool: str
    ) -> Iterator[tuple[str, str, ElementTree.Element]]:
        """Yield qube, class of the qube and element of each volume in a pool."""
        for qube in self._root.iterfind("./domains/domain"):
            name = qube.findtext("./properties/property[@name='name']", "")
            for volume in qube.iterfind("./volume-config/volume"):
                if volume.get("pool") == pool:
                    yield name, qube.get("class", ""), volume

    def volumes(self, pool: str) -> list[ConfiguredVolume]:
        """Return the volumes of a pool."""
        return [
            ConfiguredVolume(qube, klass, dict(volume.attrib))
            for qube, klass, volume in self._elements(pool)
        ]

    def dropped(self, place: MigratingPool) -> Mapping[str, Attributes]:
        """Return qube -> volume -> the attributes that adopt() removes.

        :raises Refused: if one is neither True nor False
        """
        dropped: dict[str, dict[str, dict[str, str]]] = {}
        for qube, _, volume in self._elements(place.pool):
            attributes = {
                key: value
                for key in place.dropped
                if (value := volume.get(key)) is not None
            }
            for key, value in attributes.items():
                if value not in ("True", "False"):
                    raise Refused(
                        messages.XML_NOT_BOOLEAN,
                        path=self.path,
                        attribute=key,
                        value=value,
                        qube=qube,
                    )
            if attributes:
                name = volume.get("vid", "").rpartition("/")[2]
                dropped.setdefault(qube, {})[name] = attributes
        return dropped

    def adopt(
        self, place: MigratingPool, zpool_guid: str | None = None
    ) -> None:
        """Change the pool into one of this driver, in memory.

        :param zpool_guid: GUID of the zpool to record; None: not known
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
        self,
        place: MigratingPool,
        driver: str,
        dropped: Mapping[str, Attributes],
        remove_guid: bool = True,
    ) -> None:
        """Change the pool back, in memory, with no value from a disk.

        :param driver: the earlier driver of the pool
        :param dropped: the result of dropped() from before adopt()
        :param remove_guid: whether adopt() added the GUID of the zpool
        """
        pool = self.pool(place.pool)
        pool.set("driver", driver)
        if remove_guid:
            pool.attrib.pop(ZPOOL_GUID, None)
        for qube, _, volume in self._elements(place.pool):
            vid = volume.get("vid", "")
            if vid.startswith(place.old + "/"):
                # an earlier run was interrupted after it wrote this volume
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
        """Yield a line for each attribute that write() will change."""
        before = ElementTree.fromstring(self._before).iter()
        after = (e for e in self._root.iter() if isinstance(e.tag, str))
        for old, new in zip(before, after, strict=True):
            name = f"{new.tag} {old.get('vid') or old.get('name', '')}"
            for key in sorted({*old.keys(), *new.keys()}):
                value = new.get(key)
                if value is None:
                    yield f"{name}: remove {key}={old.get(key)}"
                elif value != old.get(key):
                    yield f"{name}: set {key}={value}"

    def write(self) -> Path | None:
        """Replace the file atomically.

        :return: path of the copy of the earlier file; None if nothing changed
        :raises Refused: if another process changed the file, or it cannot be
            written
        """
        if ElementTree.tostring(self._root) == self._before:
            return None
        text = ElementTree.tostring(self._root, encoding="unicode").encode()
        try:
            now, status = files.read(self.path)
            if qubesd_runs() or now != self._text:
                raise Refused(messages.XML_CHANGED, path=self.path)
            backup = self.path.with_name(
                time.strftime(f"{self.path.name}.%Y-%m-%d-%H%M%S")
            )
            backup = files.create_beside(backup, now, status)
            files.replace(self.path, text + b"\n", status)
        except OSError as exc:
            raise Refused(
                messages.XML_NOT_WRITTEN, path=self.path, reason=exc
            ) from exc
        return backup
