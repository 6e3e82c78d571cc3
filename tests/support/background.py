# SPDX-License-Identifier: BSD-2-Clause
"""Tasks of the driver that still run when an operation has returned."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from qubes_storage_zfs.zfs import threads

T = TypeVar("T")


def be_patient() -> None:
    """Let synchronous properties of pools and volumes take long.

    On an emulated, shared machine, a property can exceed the driver's deadline
    although it waits for no disk. It would then return an earlier answer.
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

    A test's event loop ends when the test returns; that of qubesd continues.

    :raises BaseException: the exception that a task ended with
    """
    while tasks := _tasks():
        done, _ = await asyncio.wait(tasks)
        for task in done:
            task.result()


async def settled(operation: Awaitable[T]) -> T:
    """Wait for an operation and then for its tasks; return its result."""
    result = await operation
    await afterwards()
    return result


async def abandoned() -> None:
    """Cancel these tasks, as the death of qubesd does."""
    while tasks := _tasks():
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
