"""Failures as what qubesd hands to its client: a StoragePoolException."""

import contextlib
from collections.abc import Iterator

import qubes.exc

from ..store.messages import reason
from ..zfs.errors import Failure, ZfsError
from ..zfs.text import printable


def plain(text: str) -> str:
    """*text* as one line that qubesd's client can show.

    The client formats it with the % operator; and names in it may be of any
    kind: from qubes.xml, or of whatever holds a device open.
    """
    return printable(text).replace("%", "%%")


def refusal(what: str, why: str) -> qubes.exc.StoragePoolException:
    """*what* could not be done, and *why*, as an exception to be raised."""
    return qubes.exc.StoragePoolException(plain(f"{what}: {why}"))


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever ZFS refuses within becomes a StoragePoolException."""
    try:
        yield
    except (Failure, ZfsError, OSError) as exc:
        raise refusal(what, reason(exc)) from exc


def sentence(what: str, exc: Exception) -> str:
    """The same text, for the log."""
    try:
        with told(what):
            raise exc
    except qubes.exc.StoragePoolException as told_exc:
        return str(told_exc)
