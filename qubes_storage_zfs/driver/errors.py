# SPDX-License-Identifier: BSD-2-Clause
"""Failures as what qubesd hands to its client: a StoragePoolException."""

import contextlib
from collections.abc import Iterator

import qubes.exc

from ..store.messages import reason
from ..zfs.errors import Failure, ZfsError
from ..zfs.text import printable


def plain(text: str) -> str:
    """Return *text* as one line that qubesd's client can show.

    The client formats it with the % operator.  Names in it may have any
    character: they come from qubes.xml, or from a process that holds a device
    open.
    """
    return printable(text).replace("%", "%%")


def refusal(title: str, cause: str) -> qubes.exc.StoragePoolException:
    """Return the exception for a failure that has its own prefix.

    :param title: the prefix
    :param cause: the reason
    """
    return qubes.exc.StoragePoolException(plain(f"{title}: {cause}"))


@contextlib.contextmanager
def prefixed(title: str) -> Iterator[None]:
    """Map exceptions that have a message to StoragePoolException.

    Code inside raises them without a prefix; this is the place that adds it.

    :param title: the prefix ("Cannot start work/private in pool tank")
    :raises StoragePoolException: for a Failure, a ZfsError or an OSError
    """
    try:
        yield
    except (Failure, ZfsError, OSError) as exc:
        raise refusal(title, reason(exc)) from exc
