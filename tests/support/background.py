"""What the driver does after a verb has ended, and nobody waits for."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from qubes_storage_zfs.zfs import threads

T = TypeVar("T")


def be_patient() -> None:
    """Let synchronous questions take long in this process.

    Where the machine is emulated and shared, one that waits for no disk takes
    longer than the driver's deadline, and an earlier answer would be returned.
    """
    threads.DEADLINE = 30.0


def _tasks() -> list[asyncio.Task[None]]:
    return [
        task
        for task in asyncio.all_tasks()
        if task.get_name().startswith(("prepare ", "collect "))
    ]


async def afterwards() -> None:
    """Wait for it; the loop of a test ends sooner than that of qubesd.

    :raises BaseException: what a test lets it run into
    """
    while tasks := _tasks():
        done, _ = await asyncio.wait(tasks)
        for task in done:
            task.result()


async def settled(verb: Awaitable[T]) -> T:
    """What the verb gives; then a moment passes."""
    result = await verb
    await afterwards()
    return result


async def abandoned() -> None:
    """qubesd died before it was done."""
    while tasks := _tasks():
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
