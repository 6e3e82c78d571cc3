# SPDX-License-Identifier: BSD-2-Clause
"""Marks that tell which process made a zvol, and nothing to who has the disk.

A mark is an HMAC of a process' identity (boot, number and start time) with a
secret of this boot, which all processes of root share and no disk has.  No
process can be read from a mark: those that live are marked and compared.
"""

import contextlib
import functools
import hmac
import logging
import os
import secrets
import tempfile
from pathlib import Path

LOG = logging.getLogger("qubes.storage.zfs")

#: in memory, and gone with the boot
SECRET = Path("/run/qubes-storage-zfs/holder-secret")
SECRET_LENGTH = 32  # bytes

_PROC = Path("/proc")


@functools.cache
def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def _identity(pid: int | str) -> str | None:
    """Tell a process from all others on all machines; None if it is gone."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        return f"{_boot()}:{pid}:{stat.rpartition(')')[2].split()[19]}"
    except OSError:
        return None


@functools.cache
def _secret() -> bytes:
    """Return the secret of this boot; the first process makes it."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return SECRET.read_bytes()
        SECRET.parent.mkdir(mode=0o755, exist_ok=True)
        number, name = tempfile.mkstemp(dir=SECRET.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(secrets.token_bytes(SECRET_LENGTH))
            # whole from the first moment, and only one process succeeds
            with contextlib.suppress(FileExistsError):
                os.link(name, SECRET)
        finally:
            os.unlink(name)
        return SECRET.read_bytes()
    except OSError as exc:
        # other processes then take this one for dead
        LOG.warning("%s: %s", SECRET, exc)
        return secrets.token_bytes(SECRET_LENGTH)


def _marked(identity: str) -> str:
    return hmac.new(_secret(), identity.encode(), "sha256").hexdigest()


@functools.cache
def mark() -> str:
    """Return the mark of this process."""
    return _marked(_identity(os.getpid()) or "unknown")


class Living:
    """The marks of processes that live; looked for when first asked."""

    def __init__(self) -> None:
        self._marks: frozenset[str] | None = None

    def __contains__(self, other_mark: str) -> bool:
        """Whether the process that made the mark *found* lives.

        A mark from another boot or machine is no living process'.
        """
        if self._marks is None:
            identities = [
                _identity(entry.name)
                for entry in _PROC.iterdir()
                if entry.name.isdecimal()
            ]
            # older releases wrote the identity itself on the disk
            running = set(filter(None, identities))
            self._marks = frozenset(
                running | {_marked(each) for each in running}
            )
        return other_mark in self._marks

    def is_another(self, other_mark: str) -> bool:
        """Whether the process that made the mark lives and is not this one."""
        return other_mark != mark() and other_mark in self
