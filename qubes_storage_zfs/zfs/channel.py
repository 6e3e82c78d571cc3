# SPDX-License-Identifier: BSD-2-Clause
"""Run channel programs, alone or in a batch, and return their replies."""

import functools

from . import lzc, threads, zcp
from .batch import Batch
from .reply import Reply
from .zcp import Data, Note, Program, ignore, returned


def ask(name: str, dataset: str, arguments: Data) -> Reply:
    """Run a read-only program; block for threads.DEADLINE seconds at most.

    For synchronous properties of the storage API.  The program waits for no
    transaction group, but for the zpool's disks if data is not cached.

    :param name: file of the program, without ".lua"
    :param dataset: subject of an error; the program runs in its zpool
    :raises SilentZpool: if the zpool does not answer in time
    :raises ZfsError: if the program fails
    """
    questions = threads.for_zpool_of(dataset).questions
    return questions.ask(_run_alone, Program(name, dataset, arguments))


def ask_for_list(name: str, dataset: str, arguments: Data, note: Note) -> None:
    """Run a read-only program that is slow in a large pool; see ask().

    :param note: called with the reply, in another thread, even after the
        deadline
    :raises SilentZpool: if the reply does not arrive in time
    :raises ZfsError: if the program fails
    """
    listings = threads.for_zpool_of(dataset).listings
    listings.ask(_run_alone, Program(name, dataset, arguments, note))


def _run_alone(program: Program) -> Reply:
    """Run a read-only program in this thread."""
    return returned(zcp.run([program], False)[0])


async def read(
    name: str, dataset: str, arguments: Data, batch: Batch | None = None
) -> Reply:
    """Run a read-only program in a thread.

    :param batch: batch to run the program in; None: run it alone
    :raises ZfsError: if the program fails
    """
    return await _run(Program(name, dataset, arguments), False, batch)


async def change(
    name: str,
    dataset: str,
    arguments: Data,
    note: Note = ignore,
    batch: Batch | None = None,
) -> Reply:
    """Run a program that changes something, in one transaction group.

    All changes are on disk when this returns.  After a crash, all of them were
    made, or none.

    :param note: called with the reply even if the waiting task is cancelled
    :param batch: batch to run the program in; None: run it alone
    :raises ZfsError: if the program refused (then nothing was changed, unless
        its header says otherwise) or failed
    """
    return await _run(Program(name, dataset, arguments, note), True, batch)


async def _run(program: Program, sync: bool, batch: Batch | None) -> Reply:
    if batch is not None:
        return await batch.run(program, sync)
    return returned((await zcp.run_in_thread([program], sync))[0])


async def clones_in_programs(zpool: str) -> bool:
    """Return whether channel programs can clone (OpenZFS 2.4.0 and newer)."""
    return await lzc.in_thread(
        zpool,
        lambda: _can_clone(zpool, lzc.module_version()),
        reads=True,
    )


@functools.lru_cache(maxsize=4)
def _can_clone(zpool: str, _version: str | None) -> bool:
    return _run_alone(Program("can_clone", zpool, {})).as_flag()
