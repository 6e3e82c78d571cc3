# SPDX-License-Identifier: BSD-2-Clause
"""Operations that run at once in one event loop, or that are cancelled."""

import asyncio
import types
from pathlib import Path

from qubes_storage_zfs.store.state import StateQuery
from qubes_storage_zfs.zfs import devices

from .zpools import read


class Cut:
    """Run an operation and cancel it where it waits for the *at*-th time.

    :ivar at: the number of the wait; 0: the operation is never cancelled
    :ivar way: "early", "late" or "again", see tests/zfs/test_cancel.py
    :ivar waits: how often the operation waited
    """

    def __init__(self, at=0, way="early"):
        self.at, self.way, self.waits = at, way, 0

    async def run(self, operation):
        """Return whether the operation returned, and its result."""
        task = asyncio.ensure_future(self._all_of(operation))
        try:
            return True, await task
        except asyncio.CancelledError:
            return False, None

    async def _all_of(self, operation):
        return await self._steps(operation, asyncio.current_task())

    @types.coroutine
    def _steps(self, operation, task):
        resume, value = operation.send, None
        while True:
            try:
                future = resume(value)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self.at:
                self._strike(task, future)
            try:
                resume, value = operation.send, (yield future)
            except BaseException as exc:
                resume, value = operation.throw, exc

    def _strike(self, task, future):
        loop = asyncio.get_running_loop()
        if self.way == "late" and future is not None:
            # comes before the task's own callback, which is added later
            future.add_done_callback(lambda _: task.cancel())
            return
        loop.call_soon(task.cancel)
        if self.way == "again":
            self._once_more(loop, task)

    def _once_more(self, loop, task):
        if not task.done():
            task.cancel()
            loop.call_later(0.003, self._once_more, loop, task)


async def never(*_):
    """Return False, in place of a method that returns whether it can act."""
    return False


async def together(*operations):
    """Run operations at once, as qubesd does for the volumes of a qube."""
    return await asyncio.gather(*(operation() for operation in operations))


async def begin(volume):
    await volume.start()
    Path(volume.state_file).touch()


async def end(volume):
    await volume.stop()
    Path(volume.state_file).unlink(missing_ok=True)


async def seen(volume):
    """Return content, size and revisions on disk; None without a volume."""
    state = await volume.generations.state(
        StateQuery(("volsize",), revisions=True)
    )
    if state.current is None:
        return None
    dataset = volume.where.generation(state.current)
    path = await devices.wait_for_link(dataset)
    return (
        await asyncio.to_thread(read, path),
        state.properties["volsize"],
        tuple(item.number for item in state.revisions),
    )
