# SPDX-License-Identifier: BSD-2-Clause
"""Threads for each zpool, so that one that is silent delays no other.

A call into the kernel about a zpool whose disk does not answer lasts until the
disk answers, and cannot be cancelled.  So each zpool has threads of its own,
created when they are first needed.
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
#: threads of a zpool, at most
WORKERS = 16
#: threads for programs that only read.  Such a program runs in its caller's
#: thread, and the kernel does not interrupt it: leave a processor for the
#: event loop
READERS = max(2, min(4, (os.cpu_count() or 1) - 1))
#: seconds that ask() waits for an answer
DEADLINE = 0.2

_ZPOOL = re.compile(r"[A-Za-z+][A-Za-z0-9_.+-]*\Z")


class Questions:
    """Questions to one zpool that a caller waits for synchronously.

    Threads creates it.  It has one thread, so one question runs at a time.
    """

    def __init__(self, zpool: str, name: str) -> None:
        self._zpool = zpool
        self._thread = concurrent.futures.ThreadPoolExecutor(1, name)
        #: whether the question that was not answered in time is done
        self._overdue_done: Callable[[], bool] = lambda: True

    @property
    def responds(self) -> bool:
        """Whether no question is overdue."""
        return self._overdue_done()

    def ask(self, function: Callable[..., T], *args: object) -> T:
        """Run *function* in the thread and wait for its result.

        A question that is overdue continues in its thread.  Until it ends, no
        other question is put to the zpool, and this raises at once.

        :raises SilentZpool: if it takes longer than :py:data:`DEADLINE`
        """
        if not self.responds:
            raise errors.SilentZpool(self._zpool)
        future = self._thread.submit(function, *args)
        concurrent.futures.wait([future], DEADLINE)
        if not future.done():
            # a question that waits behind another thread's is withdrawn
            if not future.cancel():
                self._overdue_done = future.done
            raise errors.SilentZpool(self._zpool)
        return future.result()


class Threads:
    """The threads that work for one zpool, as long as the process lives.

    for_zpool_of() creates them, in any thread.

    :ivar workers: for calls that change something or touch a device node
    :ivar readers: for programs that only read
    :ivar questions: for synchronous properties of the API
    :ivar listings: for a list of all volumes, which takes longer than the
        deadline in a large pool; no property waits for it
    """

    def __init__(self, zpool: str) -> None:
        self.zpool = zpool
        name = f"zfs {zpool}".rstrip()
        pool = concurrent.futures.ThreadPoolExecutor
        self.workers = pool(WORKERS, name)
        self.readers = pool(READERS, f"{name} read")
        self.questions = Questions(zpool, f"{name} ask")
        self.listings = Questions(zpool, f"{name} list")

    @property
    def responds(self) -> bool:
        """Whether no question of a property is overdue."""
        return self.questions.responds


class AllThreads:
    """The threads of all zpools; the runtime has one of these."""

    def __init__(self) -> None:
        self._by_zpool: dict[str, Threads] = {}

    def of_zpool(self, zpool: str) -> Threads:
        """Return the threads of a zpool, created when first asked for."""
        with contextlib.suppress(KeyError):
            return self._by_zpool[zpool]
        # two threads that come here at once get the same
        return self._by_zpool.setdefault(zpool, Threads(zpool))


def for_zpool_of(subject: str) -> Threads:
    """Return the threads of the zpool that *subject* is in.

    :param subject: a dataset, a snapshot or a zpool, or what both() returns;
        for any other text, the threads of no zpool are returned
    """
    zpool = subject.partition("/")[0].partition("@")[0]
    if not _ZPOOL.match(zpool):
        zpool = NO_ZPOOL
    return runtime.of(AllThreads).of_zpool(zpool)


def both(source: str, target: str) -> str:
    """Return a subject for work that may wait for two zpools.

    Its threads are those of neither zpool alone.
    """
    zpools = (dataset.partition("/")[0] for dataset in (source, target))
    return "+".join(zpools)
