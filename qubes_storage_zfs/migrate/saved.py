# SPDX-License-Identifier: BSD-2-Clause
"""Save and load the record of a migration in dom0."""

import re
from pathlib import Path

from ..store import messages
from . import files
from .errors import NotARecord, Refused
from .records import Dom0Record

#: only root can write to it
FOLDER = Path("/var/lib/qubes-storage-zfs")

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")


def _path(pool: str) -> Path:
    """Return where the record of a pool is.

    :raises Refused: if the pool's name cannot name a file
    """
    if not _POOL_NAME.match(pool):
        raise Refused(messages.RECORD_POOL_NAME, pool=pool)
    return FOLDER / f"adopted-{pool}.json"


def save(record: Dom0Record) -> None:
    """Write the record; it is on disk when this returns.

    :raises Refused: if it cannot be written
    """
    path = _path(record.pool)
    try:
        files.private_folder(FOLDER)
        files.replace(path, f"{record}\n".encode("ascii"))
    except OSError as exc:
        raise Refused(
            messages.RECORD_NOT_WRITTEN, path=path, reason=exc
        ) from exc


def load(pool: str) -> Dom0Record | None:
    """Return the record; None if there is none.

    :raises Refused: if there is one that cannot be used
    """
    path = _path(pool)
    try:
        text, status = files.read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Refused(messages.FILE_NOT_READ, path=path, reason=exc) from exc
    try:
        record = Dom0Record.parse(text)
    except NotARecord as exc:
        raise Refused(messages.RECORD_NOT_OURS, path=path) from exc
    if status.st_mode & 0o022 or record.pool != pool:
        raise Refused(messages.RECORD_NOT_OURS, path=path)
    return record


def delete(pool: str) -> None:
    """Delete the record of *pool*, whose migration was undone."""
    files.remove(_path(pool))
