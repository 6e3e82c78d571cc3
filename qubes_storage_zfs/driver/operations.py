# SPDX-License-Identifier: BSD-2-Clause
"""One operation of a volume: its errors, and its line in the journal.

Inside an operation, the driver raises exceptions without a prefix.  Only
operation() adds the prefix ("Cannot start work/private in pool tank") and maps
them to the StoragePoolException that qubesd passes on.

An operation that changes the disk notes each change.  When the operation has
succeeded, it logs one line at INFO.  The line has the volume, the operation,
the generation and the duration::

    work:private in pool tank: start returned generation 3 (0.21 s)
"""

import contextlib
import logging
import time
from collections.abc import Iterator

from .errors import prefixed

LOG = logging.getLogger("qubes.storage.zfs")


class Operation:
    """The changes of one operation on disk.

    operation() creates it, and it lasts as long as the operation.  Only the
    task of the operation uses it.

    :ivar changes: the changes, in their order
    """

    def __init__(self) -> None:
        """Start without changes."""
        self.changes: list[str] = []

    def note(self, change: str) -> None:
        """Note a change on disk, for the journal.

        :param change: operation and result ("stop committed generation 3")
        """
        self.changes.append(change)


@contextlib.contextmanager
def operation(
    action: str, vid: str, pool: str, title: str | None = None
) -> Iterator[Operation]:
    """Run an operation of a volume: map its errors and log its changes.

    :param action: for the message if it fails: "Cannot <action> <vid> ..."
    :param vid: the vid of the volume
    :param pool: name of the pool
    :param title: ``<qube>:<volume>``, for the journal; None: the vid
    :raises StoragePoolException: for a Failure, a ZfsError or an OSError
    """
    current = Operation()
    started = time.monotonic()
    with prefixed(f"Cannot {action} {vid} in pool {pool}"):
        yield current
    if current.changes:
        LOG.info(
            "%s in pool %s: %s (%.2f s)",
            title or vid,
            pool,
            ", ".join(current.changes),
            time.monotonic() - started,
        )
