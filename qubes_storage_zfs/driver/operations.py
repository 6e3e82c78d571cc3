# SPDX-License-Identifier: BSD-2-Clause
"""One operation of a volume: its errors, and its line in the journal.

Inside an operation the driver raises exceptions without a prefix.  operation()
is the only place that adds the prefix ("Cannot start work/private in pool
tank") and turns them into the StoragePoolException that qubesd passes on.

An operation that changes the disk notes what it did.  When it has succeeded, one
line at INFO tells the operation, the volume, the generation or revision and the
duration::

    work:private in pool tank: start returned generation 3 (0.21 s)
"""

import contextlib
import logging
import time
from collections.abc import Iterator

from .errors import prefixed

LOG = logging.getLogger("qubes.storage.zfs")


class Operation:
    """What one operation has done so far.

    operation() creates it; it ends with the operation.  Only the task of the
    operation uses it.

    :ivar changes: what was done on disk, in the order of the changes
    """

    def __init__(self) -> None:
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

    :param action: what cannot be done if it fails ("finish the import into")
    :param vid: of the volume, for the error
    :param pool: name of the pool
    :param title: of the volume, for the journal; None: the vid
    :raises StoragePoolException: for each exception that has a message
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
