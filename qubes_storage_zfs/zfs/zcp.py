# SPDX-License-Identifier: BSD-2-Clause
"""Build the texts of channel programs, encode their arguments and run them.

A program that changes something waits for a transaction group, and each call
into the kernel takes time.  So several programs can run as one, see batch.py.
"""

import errno
import functools
import importlib.resources
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import errors, lzc, text
from .reply import Reply

LOG = logging.getLogger("qubes.storage.zfs")

#: arguments of a channel program
Data = Mapping[str, object]

#: bytes; the maximum that ZFS allows, which it allocates as needed
MEMORY_LIMIT = 100 << 20
#: Lua instructions; the maximum that ZFS allows
INSTRUCTION_LIMIT = 100_000_000


def encode(value: object) -> object:
    """Return *value* as libzfs_core takes it: str as bytes, int as int64.

    A list becomes a table with the keys "1", "2" and so on.

    :raises TypeError: if a program cannot take the value
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return text.to_disk(value)
    if isinstance(value, int):
        return lzc.library().ctypes.int64_t(value)
    if isinstance(value, Mapping):
        return {text.to_disk(key): encode(item) for key, item in value.items()}
    if not isinstance(value, Sequence):
        raise TypeError(f"a channel program cannot take {type(value)}")
    return {
        str(number).encode(): encode(item)
        for number, item in enumerate(value, 1)
    }


def decode(value: object) -> object:
    """Return the result of a program with bytes as str."""
    if isinstance(value, bytes):
        return text.from_disk(value)
    if isinstance(value, dict):
        return {decode(key): decode(item) for key, item in value.items()}
    return value


_COMMENT = re.compile(rb"^[ \t]*(--.*)?\n", re.MULTILINE)


def _texts(*folders: str) -> dict[str, bytes]:
    """Return the texts of the Lua files in a folder of this package, by name.

    The texts are constant, because names of datasets are arguments. Lines that
    are comments are left out: ZFS gets and parses the text at each call.
    """
    folder = importlib.resources.files(__package__).joinpath(*folders)
    return {
        file.name.removesuffix(".lua"): _COMMENT.sub(b"", file.read_bytes())
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


#: the channel programs by name; read when this module is imported, so that all
#: are of one version even if the package is upgraded while qubesd runs
TEXTS = _texts("programs")
#: the files that all programs share, by name
LIBRARY = _texts("programs", "lib")
#: the order of these files; each uses only those before it
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
#: series of OpenZFS whose source was read for lib/atomicity.lua
VERIFIED = ((2, 3), (2, 4))

#: Lua function that runs one of several programs.  An error ends that program
#: alone: OpenZFS's Lua has no pcall() (lbaselib.c), but coroutine.resume()
#: returns the error of the coroutine (lcorolib.c).  If a limit or a signal ends
#: a program, ZFS ends the following ones at its next check
#: (zcp_lua_counthook()).
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
    """Return the text of a program that runs the named ones, in this order.

    :param atomic: whether lib/atomicity.lua may rely on how this version of
        OpenZFS counts instructions
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


#: a function that is called with the reply of a program
Note = Callable[[Reply], object]


def ignore(_: Reply) -> None:
    """Do nothing with the reply of a program."""


@dataclass(frozen=True)
class Program:
    """A channel program with its arguments.

    :ivar name: file of the program, without ".lua"
    :ivar dataset: subject of a failure; the program runs in its zpool
    :ivar arguments: the table argv of the program
    :ivar note: called with the reply, in the thread that ran the program, even
        if no task waits for the reply any more
    """

    name: str
    dataset: str
    arguments: Data
    note: Note = ignore


#: the reply of a program, or the failure of that program alone
Result = Reply | errors.ZfsError


def run(programs: Sequence[Program], sync: bool) -> list[Result]:
    """Run programs as one, in this thread.

    :param programs: at least one; all are in one zpool
    :param sync: whether they change something
    :return: for each program its reply, or a ZfsError if that program refused
        or failed
    :raises ZfsError: if ZFS did not run them to the end
    """
    call = "channel_program" if sync else "channel_program_nosync"
    for program in programs:
        lzc.check_name(program.dataset, call)
    dataset = programs[0].dataset
    # read-only programs make no changes, so they need not be atomic
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
        # lzc.call() logs this for a program that runs alone
        error = reply.text("failed")
        LOG.error("%s of %s failed: %s", call, program.dataset, error)
        return errors.from_errno(errno.ECHRNG, program.dataset, call)
    if reply.has("errno"):
        dataset = reply.text("dataset") or program.dataset
        code, step = reply.at("errno").as_number(), reply.text("step") or call
        if code == errno.EAGAIN:
            # EAGAIN: a change cannot follow another one in the same program.
            # It does not mean that the zpool is suspended, as elsewhere: such
            # a zpool runs no program
            return errors.ZfsError(dataset, code, step)
        return errors.from_errno(code, dataset, step)
    program.note(reply)
    return reply


async def run_in_thread(
    programs: Sequence[Program], sync: bool
) -> list[Result]:
    """Call run() in a thread of the zpool of the programs."""
    dataset = programs[0].dataset
    return await lzc.in_thread(dataset, run, programs, sync, reads=not sync)


def returned(result: Result) -> Reply:
    """Return the reply; raise the failure if *result* is one.

    :raises ZfsError: the failure
    """
    if isinstance(result, errors.ZfsError):
        raise result
    return result
