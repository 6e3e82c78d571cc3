# SPDX-License-Identifier: BSD-2-Clause
"""Batches: the channel programs of several tasks, run as one program.

qubesd starts and stops the volumes of a qube concurrently, each in a task of
its own.  Each of these tasks joins the batch of the qube, and passes it to the
functions that run programs.  So the volumes wait for one transaction group.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import lzc, runtime
from .reply import Reply
from .zcp import Program, Result, returned, run_in_thread

#: seconds that a submitted program waits at most for those of other tasks
PATIENCE = 0.5


@dataclass(eq=False)
class _Submitted:
    """A program that a task has submitted and waits for."""

    program: Program
    sync: bool
    result: asyncio.Future[Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batch:
    """Concurrent tasks whose programs run as one when all of them wait.

    Batches.join() creates it.  It lives until the last task leaves it.  Only
    the thread of the event loop may touch it.

    A program that refuses or fails does not make the others fail.  If ZFS does
    not run the batch to its end, all of them fail.

    :ivar members: number of tasks in the batch
    :ivar ended: set when the last task has left
    """

    def __init__(self) -> None:
        """Create a batch without members."""
        self.members = 0
        self.ended = asyncio.Event()
        self._waiting: list[_Submitted] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, program: Program, sync: bool) -> Reply:
        """Run *program* in a batch with the programs of the other tasks.

        :param sync: whether the program changes something
        :raises ZfsError: if this program refused or failed, or if ZFS did not
            run the batch to its end
        """
        submitted = _Submitted(program, sync)
        self._waiting.append(submitted)
        self._set_timer()
        self.check()
        try:
            return returned(await asyncio.shield(submitted.result))
        except asyncio.CancelledError:
            if submitted in self._waiting:
                self._waiting.remove(submitted)
            else:
                await lzc.ended(submitted.result)
            raise

    def _set_timer(self) -> None:
        if self._waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PATIENCE, self._go)

    def check(self) -> None:
        """Run the submitted programs as soon as all tasks wait.

        Called whenever that may have changed.  The check itself is scheduled:
        tasks that were created at the same time have all started by then.
        """
        asyncio.get_running_loop().call_soon(self._go_if_all_wait)

    def _go_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self.members:
            self._go()

    def _go(self) -> None:
        """Run the programs that only read; if there are none, the changes.

        So changes wait for reading tasks, and run in one transaction group.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sync = all(item.sync for item in self._waiting)
        now = [item for item in self._waiting if item.sync == sync]
        self._waiting = [item for item in self._waiting if item not in now]
        if now:
            task = asyncio.create_task(self._serve(now, sync))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._set_timer()

    async def _serve(self, items: list[_Submitted], sync: bool) -> None:
        programs = [item.program for item in items]
        try:
            results = await run_in_thread(programs, sync)
        except BaseException as exc:  # pylint: disable=broad-except
            for item in items:
                if not item.result.done():
                    item.result.set_exception(exc)
            return
        for item, result in zip(items, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)


class Batches:
    """The batches of a process, by key.

    The runtime creates one instance, which lives as long as the process.  Only
    the thread of the event loop may touch it.
    """

    def __init__(self) -> None:
        """Create the registry without batches."""
        self._batches: dict[str, Batch] = {}

    def __len__(self) -> int:
        """Return the number of batches that have members."""
        return len(self._batches)

    @contextlib.contextmanager
    def join(self, key: str) -> Iterator[Batch]:
        """Join the batch for *key*; it ends when the last task leaves it.

        A task joins before its first await, so that tasks that start at the
        same time share a batch.  No task may wait for another task of its
        batch.

        :param key: the subject of the tasks, for example a qube's dataset; all
            programs of a batch are for one zpool
        """
        batch = self._batches.setdefault(key, Batch())
        batch.members += 1
        try:
            yield batch
        finally:
            batch.members -= 1
            if not batch.members:
                self._batches.pop(key, None)
                batch.ended.set()
            batch.check()

    async def ended(self, key: str) -> None:
        """Wait until no task is in a batch for *key*."""
        while (batch := self._batches.get(key)) is not None:
            await batch.ended.wait()


def join(key: str) -> contextlib.AbstractContextManager[Batch]:
    """Join the batch of this process for *key*; see Batches.join()."""
    return runtime.of(Batches).join(key)


async def ended(key: str) -> None:
    """Wait until no task is in a batch for *key*; see Batches.ended()."""
    await runtime.of(Batches).ended(key)
