# SPDX-License-Identifier: BSD-2-Clause
"""Holder marks: which process created a zvol, without revealing it.

A mark is an HMAC of the identity of a process: boot, process id and start time.
The key is a secret of this boot that all processes of root share and that no
disk has.  A mark cannot be turned back into an identity.  So the marks of all
living processes are computed and compared with it.
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

#: in a file system in memory, so it ends with the boot
SECRET = Path("/run/qubes-storage-zfs/holder-secret")
SECRET_LENGTH = 32  # bytes

_PROC = Path("/proc")


@functools.cache
def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def _identity(pid: int | str) -> str | None:
    """Return the identity of a process; None if the process has ended.

    No other process on any machine has the same one.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        return f"{_boot()}:{pid}:{stat.rpartition(')')[2].split()[19]}"
    except OSError:
        return None


@functools.cache
def _secret() -> bytes:
    """Return the secret of this boot; the first process creates it."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return SECRET.read_bytes()
        SECRET.parent.mkdir(mode=0o755, exist_ok=True)
        number, name = tempfile.mkstemp(dir=SECRET.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(secrets.token_bytes(SECRET_LENGTH))
            # a link is complete at once, and only one process can create it
            with contextlib.suppress(FileExistsError):
                os.link(name, SECRET)
        finally:
            os.unlink(name)
        return SECRET.read_bytes()
    except OSError as exc:
        # for other processes, the marks of this one are of no living process
        LOG.warning("%s: %s", SECRET, exc)
        return secrets.token_bytes(SECRET_LENGTH)


def _marked(identity: str) -> str:
    return hmac.new(_secret(), identity.encode(), "sha256").hexdigest()


@functools.cache
def mark() -> str:
    """Return the mark of this process."""
    return _marked(_identity(os.getpid()) or "unknown")


class Living:
    """The holder marks of all living processes, at one moment.

    The caller creates one for each decision.  The first comparison reads /proc.
    """

    def __init__(self) -> None:
        """Read nothing yet."""
        self._marks: frozenset[str] | None = None

    def __contains__(self, other_mark: str) -> bool:
        """Return whether the process with that mark is alive.

        A mark from another boot or machine belongs to no living process.
        """
        if self._marks is None:
            identities = [
                _identity(entry.name)
                for entry in _PROC.iterdir()
                if entry.name.isdecimal()
            ]
            # older releases wrote the identity itself to the disk
            running = set(filter(None, identities))
            self._marks = frozenset(
                running | {_marked(identity) for identity in running}
            )
        return other_mark in self._marks

    def is_another(self, other_mark: str) -> bool:
        """Return whether another process with that mark is alive."""
        return other_mark != mark() and other_mark in self
