# SPDX-License-Identifier: BSD-2-Clause
"""Tasks that the driver leaves behind when an operation has returned."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from qubes_storage_zfs.zfs import threads

T = TypeVar("T")


def be_patient() -> None:
    """Let synchronous properties of pools and volumes take long.

    On an emulated, shared machine a property that waits for no disk can take
    longer than the driver's deadline; then it would return an earlier answer.
    """
    threads.DEADLINE = 30.0


def _tasks() -> list[asyncio.Task[None]]:
    return [
        task
        for task in asyncio.all_tasks()
        if task.get_name().startswith(("prepare ", "collect "))
    ]


async def afterwards() -> None:
    """Wait for these tasks.

    The event loop of a test ends sooner than the one of qubesd.

    :raises BaseException: the exception that a task ended with
    """
    while tasks := _tasks():
        done, _ = await asyncio.wait(tasks)
        for task in done:
            task.result()


async def settled(verb: Awaitable[T]) -> T:
    """Wait for an operation and then for what it left; return its result."""
    result = await verb
    await afterwards()
    return result


async def abandoned() -> None:
    """Cancel these tasks, as the death of qubesd does."""
    while tasks := _tasks():
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
