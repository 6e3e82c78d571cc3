"""qubes.xml, for what qubesd cannot be asked to change.

No call of the Admin API gives a volume another vid or pool, or a pool another
driver (qubes/api/admin.py), and admin.pool.Remove refuses a pool with volumes
in it.  So the file is rewritten, while qubesd is stopped: it reads the file
when it starts, and writes what it knows over it when it runs.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from .adopt_steps import Known, Refused, Where

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
            self._text = path.read_bytes()
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

    def adopt(self, place: Where) -> None:
        """As it is once *place* is adopted; to be written()."""
        self.pool(place.pool).set("driver", place.driver)
        for _, _, volume in self._elements(place.pool):
            for key in ("vid", "source"):
                value = volume.get(key)
                if value is not None:
                    volume.set(key, value.removeprefix(place.old + "/"))
            for key in place.dropped:
                volume.attrib.pop(key, None)

    def undo(
        self,
        place: Where,
        driver: str,
        dropped: Mapping[str, Mapping[str, Mapping[str, str]]],
    ) -> None:
        """The reverse.

        :param driver: the pool's, as it was
        :param dropped: qube -> volume -> attributes that adopt() took away
        """
        self.pool(place.pool).set("driver", driver)
        for qube, _, volume in self._elements(place.pool):
            vid = volume.get("vid", "")
            if vid.startswith(place.old + "/"):
                # done before: this is repeated
                continue
            for key in ("vid", "source"):
                value = volume.get(key)
                if value is not None:
                    volume.set(key, f"{place.old}/{value}")
            for key in place.dropped:
                volume.attrib.pop(key, None)
            name = vid.rpartition("/")[2]
            volume.attrib.update(dropped.get(qube, {}).get(name, {}))

    def write(self) -> Path | None:
        """Replace the file at once; give where the one from before is kept, or
        None if nothing changed.

        :raises Refused: if somebody else wrote to it meanwhile
        """
        if ElementTree.tostring(self._root) == self._before:
            return None
        text = ElementTree.tostring(self._root, encoding="unicode").encode()
        if qubesd_runs() or self.path.read_bytes() != self._text:
            raise Refused(
                f"{self.path} was not written: qubesd runs again; stop it with"
                " 'sudo systemctl stop qubesd', and repeat this command"
            )
        kept = self.path.with_name(
            time.strftime(f"{self.path.name}.%Y-%m-%d-%H%M%S")
        )
        shutil.copy2(self.path, kept)
        before = self.path.stat()
        handle, made = tempfile.mkstemp(dir=self.path.parent, prefix=".adopt-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text + b"\n")
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o7777)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return kept
