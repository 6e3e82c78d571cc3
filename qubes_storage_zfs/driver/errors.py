# SPDX-License-Identifier: BSD-2-Clause
"""Map failures to StoragePoolException, which qubesd passes to its client."""

import contextlib
from collections.abc import Iterator

import qubes.exc

from ..store.messages import reason
from ..zfs.errors import Failure, ZfsError
from ..zfs.text import printable


def plain(text: str) -> str:
    """Return *text* as one line that qubesd's client can show.

    The client formats the line with the % operator.  Names in the line can have
    any character.  They come from qubes.xml, or from a process that has a
    device open.
    """
    return printable(text).replace("%", "%%")


def refusal(title: str, cause: str) -> qubes.exc.StoragePoolException:
    """Return the exception for a failure.

    :param title: the prefix ("Cannot start work/private in pool tank")
    :param cause: the reason, and what to do
    """
    return qubes.exc.StoragePoolException(plain(f"{title}: {cause}"))


@contextlib.contextmanager
def prefixed(title: str) -> Iterator[None]:
    """Map exceptions that have a message to StoragePoolException.

    Code inside raises exceptions without a prefix.  Only this function adds it.

    :param title: the prefix ("Cannot start work/private in pool tank")
    :raises StoragePoolException: for a Failure, a ZfsError or an OSError
    """
    try:
        yield
    except (Failure, ZfsError, OSError) as exc:
        raise refusal(title, reason(exc)) from exc
