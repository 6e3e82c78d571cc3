# SPDX-License-Identifier: BSD-2-Clause
"""Threads for each zpool, so that a silent zpool delays no other.

If a disk does not answer, a call into the kernel about its zpool does not
return before the disk answers, and cannot be cancelled.  So each zpool has
threads of its own, which are created when they are first needed.
"""

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable
from typing import TypeVar

from . import errors, runtime

T = TypeVar("T")

#: the subject of work that concerns no zpool
NO_ZPOOL = ""
#: threads for changes, and for calls that touch nodes, of a zpool, at most
WORKERS = 16
#: threads for read-only programs of a zpool, at most.  The kernel runs such a
#: program in the calling thread without interrupting it, so one processor is
#: left for the event loop
READERS = max(2, min(4, (os.cpu_count() or 1) - 1))
#: seconds that ask() blocks at most
DEADLINE = 0.2

_ZPOOL = re.compile(r"[A-Za-z+][A-Za-z0-9_.+-]*\Z")


class Questions:
    """Runs functions about one zpool, for callers that block.

    Threads creates it, and it lives as long as the process.  It has one thread,
    so it runs one function at a time.  All threads may use it.
    """

    def __init__(self, zpool: str, name: str) -> None:
        """Create it without a thread.

        :param name: of the thread
        """
        self._zpool = zpool
        self._thread = concurrent.futures.ThreadPoolExecutor(1, name)
        #: whether the function that missed its deadline has ended
        self._overdue_done: Callable[[], bool] = lambda: True

    @property
    def responds(self) -> bool:
        """Whether no function is overdue."""
        return self._overdue_done()

    def ask(self, function: Callable[..., T], *args: object) -> T:
        """Run *function* in the thread and wait for its result.

        A function that is overdue continues in its thread.  Until it ends, this
        runs no other function and raises at once.

        :raises SilentZpool: if it takes longer than :py:data:`DEADLINE` seconds
        """
        if not self.responds:
            raise errors.SilentZpool(self._zpool)
        future = self._thread.submit(function, *args)
        concurrent.futures.wait([future], DEADLINE)
        if not future.done():
            # a function that another thread's has kept from starting is
            # cancelled
            if not future.cancel():
                self._overdue_done = future.done
            raise errors.SilentZpool(self._zpool)
        return future.result()


class Threads:
    """The threads of one zpool.

    AllThreads creates it, and it lives as long as the process.  All threads may
    use it.

    :ivar workers: for calls that change something or touch a device node
    :ivar readers: for read-only programs
    :ivar questions: for synchronous properties of the storage API
    :ivar listings: for lists of all volumes, which take longer than the
        deadline in a large pool; a property does not wait behind one
    """

    def __init__(self, zpool: str) -> None:
        """Create the threads of *zpool*, none of which runs yet."""
        self.zpool = zpool
        name = f"zfs {zpool}".rstrip()
        pool = concurrent.futures.ThreadPoolExecutor
        self.workers = pool(WORKERS, name)
        self.readers = pool(READERS, f"{name} read")
        self.questions = Questions(zpool, f"{name} ask")
        self.listings = Questions(zpool, f"{name} list")

    @property
    def responds(self) -> bool:
        """Whether no function of a synchronous property is overdue."""
        return self.questions.responds


class AllThreads:
    """The threads of all zpools.

    The runtime creates one instance.  All threads may use it.
    """

    def __init__(self) -> None:
        """Create the registry without threads."""
        self._by_zpool: dict[str, Threads] = {}

    def of_zpool(self, zpool: str) -> Threads:
        """Return the threads of a zpool, which the first call creates."""
        with contextlib.suppress(KeyError):
            return self._by_zpool[zpool]
        # two threads that are here at the same time get the same object
        return self._by_zpool.setdefault(zpool, Threads(zpool))


def for_zpool_of(subject: str) -> Threads:
    """Return the threads of the zpool that *subject* is in.

    :param subject: a dataset, a snapshot, a zpool or the result of both(); any
        other text gets the threads of NO_ZPOOL
    """
    zpool = subject.partition("/")[0].partition("@")[0]
    if not _ZPOOL.match(zpool):
        zpool = NO_ZPOOL
    return runtime.of(AllThreads).of_zpool(zpool)


def both(source: str, target: str) -> str:
    """Return a subject for work that may wait for the zpools of two datasets.

    It has threads of its own, which are not those of either zpool.
    """
    zpools = (dataset.partition("/")[0] for dataset in (source, target))
    return "+".join(zpools)
