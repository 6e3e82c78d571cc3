# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs: their texts, their arguments, and running them.

A program that changes something waits for a transaction group, and each call
of ZFS has its price.  So several programs can run as one, see batch.py.
"""

import errno
import functools
import importlib.resources
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import errors, lzc, text
from .reply import Reply

LOG = logging.getLogger("qubes.storage.zfs")

#: what a channel program takes
Data = Mapping[str, object]

MEMORY_LIMIT = 100 << 20  # bytes; the most ZFS allows, allocated as needed
INSTRUCTION_LIMIT = 100_000_000  # the most ZFS allows


def encode(value: object) -> object:
    """Return *value* as a program takes it: str as bytes, int as int64."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return text.to_disk(value)
    if isinstance(value, int):
        return lzc.library().ctypes.int64_t(value)
    if isinstance(value, Mapping):
        return {text.to_disk(key): encode(item) for key, item in value.items()}
    if not isinstance(value, Sequence):
        raise TypeError(f"{type(value)} is no argument of a channel program")
    return {
        str(number).encode(): encode(item)
        for number, item in enumerate(value, 1)
    }


def decode(value: object) -> object:
    """Return what a program returned, with bytes as str."""
    if isinstance(value, bytes):
        return text.from_disk(value)
    if isinstance(value, dict):
        return {decode(key): decode(item) for key, item in value.items()}
    return value


def _texts(*folders: str) -> dict[str, bytes]:
    """Return the texts of the Lua files in a folder below programs/.

    They are constant: names of datasets are arguments.
    """
    folder = importlib.resources.files(__package__).joinpath(*folders)
    return {
        file.name.removesuffix(".lua"): file.read_bytes()
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


#: the channel programs by name; all of one version, even if the package is
#: upgraded while qubesd runs
TEXTS = _texts("programs")
#: what the programs share, by name
LIBRARY = _texts("programs", "lib")
#: in this order: each file uses only those before it
_ORDER = (
    "properties",
    "names",
    "pointer",
    "atomicity",
    "revisions",
    "written",
    "empty",
    "destruction",
    "pruning",
    "promotion",
)
#: series of OpenZFS whose code was read for lib/atomicity.lua
VERIFIED = ((2, 3), (2, 4))

#: Runs one of several programs, so that an error ends this program alone.
#: OpenZFS's Lua has no pcall() (lbaselib.c), but coroutine.resume() returns the
#: error of the coroutine (lcorolib.c).  If a limit or a signal ends a program,
#: ZFS ends the following ones at its next check (zcp_lua_counthook()).
_PROTECT = b"""
local function run_protected(program)
    local ended, result = coroutine.resume(coroutine.create(program))
    if ended then
        return result
    end
    return {failed = tostring(result)}
end
"""


@functools.lru_cache(maxsize=64)
def whole_text(names: tuple[str, ...], atomic: bool) -> bytes:
    """Return one program that runs those with these names, in this order.

    :param atomic: rely on what lib/atomicity.lua says of OpenZFS
    """
    lines = [b"local atomic = %s\n" % str(atomic).lower().encode()]
    lines += [LIBRARY[name] for name in _ORDER]
    for name in sorted(set(names)):
        head = f"local function run_{name}()\n".encode()
        lines += [head, TEXTS[name], b"end\n"]
    lines.append(b"local inputs, results = (...).argv, {}\n")
    call = "run_{}()"
    if len(names) > 1:
        lines.append(_PROTECT)
        call = "run_protected(run_{})"
    for number, name in enumerate(names, 1):
        lines.append(b'argv = inputs["%d"]\n' % number)
        lines.append(f'results["{number}"] = {call.format(name)}\n'.encode())
    return b"".join([*lines, b"return results\n"])


#: called with what a program returned
Note = Callable[[Reply], object]


def ignore(_: Reply) -> None:
    """Do nothing with what a program returned."""


@dataclass(frozen=True)
class Program:
    """A channel program with its arguments.

    :ivar name: of its file, without ".lua"
    :ivar dataset: which a failure is about; the program runs in its zpool
    :ivar note: called with the result, even if no task waits for it any more
    """

    name: str
    dataset: str
    arguments: Data
    note: Note = ignore


#: what a program returned, or the failure of that program alone
Result = Reply | errors.ZfsError


def run(programs: Sequence[Program], sync: bool) -> list[Result]:
    """Run programs as one, in this thread.

    :param sync: they change something
    :return: for each program its result, or a ZfsError if that program
        refused or failed
    :raises ZfsError: if ZFS did not run them to the end
    """
    call = "channel_program" if sync else "channel_program_nosync"
    for program in programs:
        lzc.check_name(program.dataset, call)
    dataset = programs[0].dataset
    # only changes can be cut; what reads needs no look at the version
    atomic = sync and (lzc.version_numbers() or ())[:2] in VERIFIED
    answer = lzc.call(
        call,
        dataset,
        dataset.partition("/")[0].encode(),
        whole_text(tuple(program.name for program in programs), atomic),
        INSTRUCTION_LIMIT,
        MEMORY_LIMIT,
        encode([program.arguments for program in programs]),
    )
    results = Reply(decode(answer))
    return [
        _result(program, results.at(str(number)), call)
        for number, program in enumerate(programs, 1)
    ]


def _result(program: Program, reply: Reply, call: str) -> Result:
    if reply.has("failed"):
        # as lzc.call() does for a program that runs alone
        why = reply.text("failed")
        LOG.error("%s of %s: %s", call, program.dataset, why)
        return errors.from_errno(errno.ECHRNG, program.dataset, call)
    if reply.has("errno"):
        dataset = reply.text("dataset") or program.dataset
        code, step = reply.at("errno").as_number(), reply.text("step") or call
        if code == errno.EAGAIN:
            # one change that cannot follow another in the same program; a
            # suspended zpool runs none
            return errors.ZfsError(dataset, code, step)
        return errors.from_errno(code, dataset, step)
    program.note(reply)
    return reply


async def run_in_thread(
    programs: Sequence[Program], sync: bool
) -> list[Result]:
    """Call run() in a thread of the programs' zpool."""
    dataset = programs[0].dataset
    return await lzc.in_thread(dataset, run, programs, sync, reads=not sync)


def returned(result: Result) -> Reply:
    """Return *result* unless it is a failure.

    :raises ZfsError: if it is
    """
    if isinstance(result, errors.ZfsError):
        raise result
    return result
