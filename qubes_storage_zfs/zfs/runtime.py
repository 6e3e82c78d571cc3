# SPDX-License-Identifier: BSD-2-Clause
"""The state that a process has in memory, in one object.

Nearly all state is in ZFS.  A process has in memory: the threads of each zpool,
batches of channel programs, containers with their reserved datasets, keys with
their timers, and background tasks.  Each of these is a registry: a class that
is created without arguments.  The runtime has one instance of each registry.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class Runtime:
    """The registries of one process.

    This module creates one when it is imported, which lives as long as the
    process.  A test that simulates a restart of qubesd replaces it.  All
    threads may call of().
    """

    def __init__(self) -> None:
        """Create a runtime without registries."""
        self._lock = threading.Lock()
        self._registries: dict[object, object] = {}

    def of(self, kind: Callable[[], T]) -> T:
        """Return the instance of a registry, which the first call creates.

        :param kind: the class of the registry
        """
        with contextlib.suppress(KeyError):
            return cast(T, self._registries[kind])
        with self._lock:
            if kind not in self._registries:
                self._registries[kind] = kind()
            return cast(T, self._registries[kind])

    def close(self) -> None:
        """End what the registries do in the background.

        This calls the method close() of each registry that has one.
        """
        for registry in list(self._registries.values()):
            close = getattr(registry, "close", None)
            if close is not None:
                close()


class Tasks(set[asyncio.Task[object]]):
    """Background tasks of the process; the runtime creates one instance.

    The event loop has weak references to tasks only, so without this, Python
    could collect a task before it ends.  Only the thread of the event loop may
    touch it.
    """

    def keep(self, task: asyncio.Task[object]) -> None:
        """Keep a reference to a task until it has ended."""
        self.add(task)
        task.add_done_callback(self.discard)


_current = Runtime()


def of(kind: Callable[[], T]) -> T:
    """Return the registry of this process; see Runtime.of()."""
    return _current.of(kind)


def restart() -> None:
    """Replace the runtime by an empty one, as in a new process; for tests."""
    global _current
    _current.close()
    _current = Runtime()
