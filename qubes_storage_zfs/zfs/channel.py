"""Channel programs: running them, and those of several tasks as one.

A program that changes something waits for a transaction group, and each call
of ZFS has its price.  qubesd starts and stops a qube's volumes side by side,
each in a task of its own; what such tasks ask for together() is run as one
program.
"""

import asyncio
import contextlib
import errno
import functools
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from . import errors, lzc, text, threads

#: what a channel program takes and gives
Data = Mapping[str, Any]

MEMORY_LIMIT = 100 << 20  # bytes; the most ZFS allows, allocated as needed
INSTRUCTION_LIMIT = 100_000_000  # the most ZFS allows
#: seconds that a task waits for the others, should one of them take long
PATIENCE = 0.5


def _encode(value: Any) -> Any:
    """str to bytes and int to int64, which is all that programs take."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return text.to_disk(value)
    if isinstance(value, int):
        return lzc.library().ctypes.int64_t(value)
    if isinstance(value, Mapping):
        return {text.to_disk(key): _encode(item) for key, item in value.items()}
    return {
        str(number).encode(): _encode(item)
        for number, item in enumerate(value, 1)
    }


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return text.from_disk(value)
    if isinstance(value, dict):
        return {_decode(key): _decode(item) for key, item in value.items()}
    return value


def _programs() -> dict[str, bytes]:
    """Texts of the channel programs; constant, names are arguments."""
    folder = importlib.resources.files(__package__) / "programs"
    return {
        file.name.removesuffix(".lua"): file.read_bytes()
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


#: all of one version, even if the package is upgraded while qubesd runs
_PROGRAMS = _programs()


#: what the others use, each also what is before it
_SHARED = ("common", "destruction", "promotion")


@functools.lru_cache(maxsize=64)
def _text(names: tuple[str, ...]) -> bytes:
    """One program that runs those of these names, one after the other."""
    lines = [_PROGRAMS[name] for name in _SHARED]
    for name in sorted(set(names)):
        head = f"local function run_{name}()\n".encode()
        lines += [head, _PROGRAMS[name], b"end\n"]
    lines.append(b"local given, results = (...).argv, {}\n")
    for number, name in enumerate(names, 1):
        lines.append(b'argv = given["%d"]\n' % number)
        lines.append(f'results["{number}"] = run_{name}()\n'.encode())
    return b"".join([*lines, b"return results\n"])


@dataclass(frozen=True)
class _Program:
    """One to be run, and for what.

    :ivar note: is told what it gives, whoever still waits for that
    """

    name: str
    dataset: str
    arguments: Data
    note: Callable[[Any], None] = lambda _: None


def _run(programs: Sequence[_Program], sync: bool) -> list[Any]:
    """Run them as one; what each gives, or the ZfsError that it refused with.

    :raises ZfsError: if ZFS did not run them to the end
    """
    what = "channel_program" if sync else "channel_program_nosync"
    for program in programs:
        lzc.check_name(program.dataset, what)
    dataset = programs[0].dataset
    results = _decode(
        lzc.call(
            what,
            dataset,
            dataset.partition("/")[0].encode(),
            _text(tuple(program.name for program in programs)),
            INSTRUCTION_LIMIT,
            MEMORY_LIMIT,
            _encode([program.arguments for program in programs]),
        )
    )
    return [
        _result(program, (results or {}).get(str(number)))
        for number, program in enumerate(programs, 1)
    ]


def _result(program: _Program, result: Any) -> Any:
    if isinstance(result, dict) and "errno" in result:
        dataset = result.get("dataset", program.dataset)
        code, step = result["errno"], result["step"]
        if code == errno.EAGAIN:
            # one change that cannot follow another in the same program; a
            # suspended zpool runs none
            return errors.ZfsError(dataset, code, step)
        return errors.from_errno(code, dataset, step)
    program.note(result)
    return result


async def _run_in_thread(programs: Sequence[_Program], sync: bool) -> list[Any]:
    dataset = programs[0].dataset
    return await lzc.in_thread(dataset, _run, programs, sync, reads=not sync)


def _given(result: Any) -> Any:
    if isinstance(result, errors.ZfsError):
        raise result
    return result


def ask(name: str, dataset: str, arguments: Data) -> Any:
    """Run a read-only program and wait for it, for a moment at most.

    For properties that the API wants synchronously.  It waits for no
    transaction group, but for the zpool's disks if not all is cached.

    :raises SilentZpool: if the zpool does not answer in time
    :raises ZfsError: if the program fails
    """
    questions = threads.for_zpool_of(dataset).questions
    return questions.ask(_run_alone, _Program(name, dataset, arguments))


def ask_for_list(
    name: str, dataset: str, arguments: Data, note: Callable[[Any], None]
) -> None:
    """As ask(), for a program that may take longer in a large pool.

    :param note: is called with the result, in another thread, even if it
        comes too late
    :raises SilentZpool: if it does not come in time
    :raises ZfsError: if the program fails
    """
    listings = threads.for_zpool_of(dataset).listings
    listings.ask(_run_alone, _Program(name, dataset, arguments, note))


def _run_alone(program: _Program) -> Any:
    """Run a program that only reads, in this thread."""
    return _given(_run([program], False)[0])


async def read(name: str, dataset: str, arguments: Data) -> Any:
    """As :py:func:`ask`, in a thread."""
    return await _ask(_Program(name, dataset, arguments), False)


async def change(
    name: str,
    dataset: str,
    arguments: Data,
    note: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Run a program that changes something: one transaction group.

    All it did is on disk when this returns; after a crash, all or nothing.

    :param note: is told the result even if the waiting task is cancelled
    :raises ZfsError: if the program refused (then nothing was changed,
        unless its header says otherwise) or failed
    """
    return await _ask(_Program(name, dataset, arguments, note), True)


async def _ask(program: _Program, sync: bool) -> Any:
    party = _party.get()
    if party is not None:
        return _given(await party.ask(_Asked(program, sync)))
    return _given((await _run_in_thread([program], sync))[0])


@dataclass(eq=False)
class _Asked:
    """What a task waits for."""

    program: _Program
    sync: bool
    result: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _Party:
    """Tasks that go side by side; their programs run when all of them wait.

    :ivar members: how many tasks there are
    :ivar over: set when there are none any more
    """

    def __init__(self) -> None:
        self.members = 0
        self.over = asyncio.Event()
        self._waiting: list[_Asked] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, asked: _Asked) -> Any:
        self._waiting.append(asked)
        self._wait_on()
        self.look()
        try:
            return await asyncio.shield(asked.result)
        except asyncio.CancelledError:
            if asked in self._waiting:
                self._waiting.remove(asked)
            else:
                await lzc.ended(asked.result)
            raise

    def _wait_on(self) -> None:
        if self._waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PATIENCE, self._go)

    def look(self) -> None:
        """Somebody waits, or has left.

        Tasks that were made at once have all begun when the loop comes to
        what is asked of it here.
        """
        asyncio.get_running_loop().call_soon(self._go_if_all_wait)

    def _go_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self.members:
            self._go()

    def _go(self) -> None:
        """First what is read, so that changes come together."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sync = all(asked.sync for asked in self._waiting)
        batch = [asked for asked in self._waiting if asked.sync == sync]
        self._waiting = [each for each in self._waiting if each not in batch]
        if batch:
            task = asyncio.create_task(self._serve(batch, sync))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._wait_on()

    async def _serve(self, batch: list[_Asked], sync: bool) -> None:
        programs = [asked.program for asked in batch]
        try:
            results = await _run_in_thread(programs, sync)
        except BaseException as exc:  # pylint: disable=broad-except
            for asked in batch:
                if not asked.result.done():
                    asked.result.set_exception(exc)
            return
        for asked, result in zip(batch, results, strict=True):
            if not asked.result.done():
                asked.result.set_result(result)


_parties: dict[str, _Party] = {}
_party: ContextVar[_Party | None] = ContextVar("_party", default=None)


@contextlib.contextmanager
def together(key: str) -> Iterator[None]:
    """What the tasks that are within this at once ask for runs as one.

    To be entered before a task waits for anything, so that those that begin
    together meet.  None of them may wait for what another one will do.

    :param key: of what; all of it is in one zpool
    """
    if _party.get() is not None:
        yield
        return
    party = _parties.setdefault(key, _Party())
    party.members += 1
    token = _party.set(party)
    try:
        yield
    finally:
        _party.reset(token)
        party.members -= 1
        if not party.members:
            _parties.pop(key, None)
            party.over.set()
        party.look()


async def over(key: str) -> None:
    """Wait until no task is within together(*key*)."""
    while (party := _parties.get(key)) is not None:
        await party.over.wait()


async def clones_in_programs(zpool: str) -> bool:
    """Whether channel programs can clone here (OpenZFS 2.4.0 and newer)."""
    return await lzc.in_thread(
        zpool,
        lambda: _can_clone(zpool, lzc.module_version()),
        reads=True,
    )


@functools.lru_cache(maxsize=4)
def _can_clone(zpool: str, _version: str | None) -> bool:
    return bool(_run_alone(_Program("can_clone", zpool, {})))
