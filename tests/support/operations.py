"""For tests that run several verbs in one event loop, or cut one short."""

import asyncio
import types
from pathlib import Path

from qubes_storage_zfs.zfs import devices

from .zpools import read


class Cut:
    """Runs a verb and cancels it at its *at*-th wait; 0: never."""

    def __init__(self, at=0, way="early"):
        self.at, self.way, self.waits = at, way, 0

    async def run(self, verb):
        """Whether it came to its end, and what it gave then."""
        task = asyncio.ensure_future(self._all_of(verb))
        try:
            return True, await task
        except asyncio.CancelledError:
            return False, None

    async def _all_of(self, verb):
        return await self._steps(verb, asyncio.current_task())

    @types.coroutine
    def _steps(self, verb, task):
        resume, value = verb.send, None
        while True:
            try:
                future = resume(value)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self.at:
                self._strike(task, future)
            try:
                resume, value = verb.send, (yield future)
            except BaseException as exc:
                resume, value = verb.throw, exc

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
    """In the place of a method that says whether something can be done."""
    return False


async def together(*verbs):
    """Side by side, as qubesd calls those of a qube's volumes."""
    return await asyncio.gather(*(verb() for verb in verbs))


async def begin(volume):
    await volume.start()
    Path(volume.state_file).touch()


async def end(volume):
    await volume.stop()
    Path(volume.state_file).unlink(missing_ok=True)


async def seen(volume):
    """Content, size and revisions on disk; None if there is no volume."""
    state = await volume.generations.state("volsize", revisions=True)
    if state.current is None:
        return None
    dataset = volume.where.generation(state.current)
    path = await devices.wait_for_link(dataset)
    return (
        await asyncio.to_thread(read, path),
        state.properties["volsize"],
        tuple(item.number for item in state.revisions),
    )
