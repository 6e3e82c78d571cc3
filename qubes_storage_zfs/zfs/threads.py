"""The threads of each zpool: one that does not answer holds up no other.

A call into the kernel about a zpool whose disk does not answer lasts until the
disk does, and cannot be ended.  So each zpool has threads of its own, made
when they are first needed.
"""

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from . import errors

T = TypeVar("T")

#: the subject of work that is about no zpool
NO_ZPOOL = ""
#: threads of a zpool, at most
WORKERS = 16
#: A program that reads runs in its caller's thread, and the kernel does not
#: interrupt it: a processor is left for the event loop.
READERS = max(2, min(4, (os.cpu_count() or 1) - 1))
#: seconds that ask() waits for an answer
DEADLINE = 0.2

_ZPOOL = re.compile(r"[A-Za-z+][A-Za-z0-9_.+-]*\Z")

Future = concurrent.futures.Future[Any]


class Questions:
    """Questions to one zpool whose answers are waited for synchronously.

    There is one at a time, in a thread of their own.
    """

    def __init__(self, zpool: str, name: str) -> None:
        self._zpool = zpool
        self._thread = concurrent.futures.ThreadPoolExecutor(1, name)
        #: the question that was not answered in time
        self._overdue: Future | None = None

    @property
    def answered(self) -> bool:
        """Whether no question is overdue."""
        return self._overdue is None or self._overdue.done()

    def ask(self, function: Callable[..., T], *args: Any) -> T:
        """Run *function* in the thread and wait for it, not longer than
        :py:data:`DEADLINE`.

        What is overdue goes on in its thread.  Until it ends, no other
        question is put to the zpool, and this raises at once.

        :raises SilentZpool: if it takes longer
        """
        if not self.answered:
            raise errors.SilentZpool(self._zpool)
        future: Future = self._thread.submit(function, *args)
        concurrent.futures.wait([future], DEADLINE)
        if not future.done():
            # one that still waits behind another thread's question is not put
            if not future.cancel():
                self._overdue = future
            raise errors.SilentZpool(self._zpool)
        result: T = future.result()
        return result


class Threads:
    """The threads that work for one zpool, as long as the process lives.

    Made by for_zpool_of(), in any thread.

    :ivar workers: for calls that change something or touch a device node
    :ivar readers: for programs that only read
    :ivar questions: for what properties of the API ask
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
    def answers(self) -> bool:
        """Whether no question of a property is overdue."""
        return self.questions.answered


_known: dict[str, Threads] = {}


def for_zpool_of(subject: str) -> Threads:
    """Return the threads of the zpool that *subject* is in.

    :param subject: a dataset, a snapshot or a zpool, or what both() returns;
        for any other text, the threads of no zpool are returned
    """
    zpool = subject.partition("/")[0].partition("@")[0]
    if not _ZPOOL.match(zpool):
        zpool = NO_ZPOOL
    with contextlib.suppress(KeyError):
        return _known[zpool]
    # of two threads that come here at once, both are given the same
    return _known.setdefault(zpool, Threads(zpool))


def both(source: str, target: str) -> str:
    """Return a subject for work that may wait for two zpools: threads that
    neither of them has for itself."""
    names = (each.partition("/")[0] for each in (source, target))
    return "+".join(names)
