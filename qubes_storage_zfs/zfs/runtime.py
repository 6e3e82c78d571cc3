# SPDX-License-Identifier: BSD-2-Clause
"""What this process keeps, in one object.

Nearly all state is in ZFS.  A process keeps what is in progress and what it has
learnt: the threads of each zpool, batches of channel programs, containers and
what is reserved in them, keys and their timers, background tasks.  Each is a
class that is created without arguments (a registry), and the runtime has one
instance of each.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class Runtime:
    """The registries of one process.

    The first is created when this module is imported, and lives as long as the
    process.  A test that simulates a restart of qubesd puts another in its
    place.  Any thread may call of().
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registries: dict[object, object] = {}

    def of(self, kind: Callable[[], T]) -> T:
        """Return the instance of a registry, created when first asked for.

        :param kind: its class
        """
        with contextlib.suppress(KeyError):
            return cast(T, self._registries[kind])
        with self._lock:
            if kind not in self._registries:
                self._registries[kind] = kind()
            return cast(T, self._registries[kind])

    def close(self) -> None:
        """End what the registries do in the background, where they have a
        method close()."""
        for registry in list(self._registries.values()):
            close = getattr(registry, "close", None)
            if close is not None:
                close()


class Tasks(set[asyncio.Task[object]]):
    """Tasks that run beside what began them; the runtime has one of these.

    The event loop alone would not keep them from being collected.
    """

    def keep(self, task: asyncio.Task[object]) -> None:
        """Keep a task until it has ended."""
        self.add(task)
        task.add_done_callback(self.discard)


_current = Runtime()


def of(kind: Callable[[], T]) -> T:
    """Return the registry of this process; see Runtime.of()."""
    return _current.of(kind)


def restart() -> None:
    """Begin with empty registries, as a new process does; for tests."""
    global _current
    _current.close()
    _current = Runtime()
