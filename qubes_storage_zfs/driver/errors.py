"""Failures as what qubesd hands to its client: a StoragePoolException."""

import contextlib
from collections.abc import Iterator

import qubes.exc

from ..store.messages import COPY_FAILED, reason
from ..store.naming import BadName
from ..store.policy import Refused
from ..zfs import errors as zfs
from ..zfs.keys import NotAsked
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
    except (BadName, NotAsked, Refused) as exc:
        raise refusal(what, str(exc)) from exc
    except zfs.ZfsError as exc:
        raise refusal(what, reason(exc)) from exc
    except OSError as exc:
        why = COPY_FAILED.format(reason=exc.strerror or str(exc))
        raise refusal(what, why) from exc


def sentence(what: str, exc: Exception) -> str:
    """The same text, for the log."""
    try:
        with told(what):
            raise exc
    except qubes.exc.StoragePoolException as told_exc:
        return str(told_exc)
