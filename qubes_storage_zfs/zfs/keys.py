"""Keys of encryption roots: asked for, loaded, forgotten; never held here.

A process of its own deals with each passphrase, see keyholder.py.  What is
done here is to run it, and to have a person asked when it wants an answer,
which goes from the prompt to it through a pipe, or from the terminal to it.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import channel, commands, devices, errors, lzc
from .keywords import End

LOG = logging.getLogger("qubes.storage.zfs")

#: has a person asked: what for (a word of keyholder.py), and the file
#: descriptor that the answer is to be written to; or shows what is asked, if
#: the keyholder reads the answer itself
Prompt = Callable[[str, int], Awaitable[None]]

#: seconds that the keyholder may take from one word to the next
PATIENCE = 120.0
#: ... and iterations of PBKDF2 that it makes in one more, on a slow machine
SLOWEST = 50_000
#: seconds that it has to wipe its memory before it is killed
GRACE = 2.0
#: seconds that it may take to end when it was killed: a call in the kernel
#: that waits for a disk ends when that answers
END_LIMIT = 5.0

_FOLDER = Path(__file__).resolve().parents[2]
#: this very package, whatever else is installed; and nothing of the
#: environment or the current directory; Ctrl-C ends it without a traceback
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " sys.path.insert(0, sys.argv.pop(1));"
    f" from {__package__}.keyholder import main; sys.exit(main(sys.argv[1:]))"
)


class NotAsked(errors.Failure):
    """A prompt returned no answer; the message is the reason."""


class NobodyToAsk(NotAsked):
    """No prompt was shown: no domain, session or program can show one."""


@dataclass(frozen=True)
class KeyState:
    """What ZFS says of a dataset and its key."""

    exists: bool
    #: the dataset whose key it is encrypted with; None: it is not encrypted
    root: str | None
    loaded: bool
    #: passphrase, hex or raw
    format: str | None
    #: the dataset where readonly=on is set that is so here; None: it is not
    read_only_by: str | None = None

    @property
    def locked(self) -> bool:
        return self.root is not None and not self.loaded


async def state(dataset: str) -> KeyState:
    """:raises ZfsError: if ZFS cannot be asked"""
    answer = await channel.read("key", dataset, {"dataset": dataset}) or {}
    return KeyState(
        exists=bool(answer.get("exists")),
        root=answer.get("root"),
        loaded=bool(answer.get("loaded")),
        format=answer.get("format"),
        read_only_by=answer.get("read_only_by"),
    )


async def load(root: str, prompt: Prompt, typed: bool = False) -> None:
    """Load the key of *root*; if it is loaded, have the passphrase checked.

    :param typed: the keyholder reads the answers from the standard input of
        this process, which never sees them; *prompt* only shows what is asked
    :raises WrongPassphrase: if three answers were wrong
    :raises BadAnswer: if one was none
    :raises NoAnswer: if the standard input ended
    :raises BadIterations: if the disk says that it would take hours
    :raises Silent: if the keyholder got stuck
    :raises Unprotected: if it could not protect its memory
    :raises ZfsError: if ZFS refuses
    """
    await _hold(root, prompt, "load", {"typed": typed})


def obstacle(root: str, found: KeyState) -> errors.NoPassphrase | None:
    """Return what keeps a passphrase from unlocking *root*, if anything."""
    if found.root != root or not found.format or found.format == "passphrase":
        return None
    return errors.NoPassphrase(root, found.format)


def must_be_passphrase(root: str, found: KeyState) -> None:
    """:raises NoPassphrase: if the key of *root* is not made from one"""
    wrong = obstacle(root, found)
    if wrong is not None:
        raise wrong


async def create(
    root: str,
    iterations: int,
    properties: Mapping[str, lzc.Value],
    prompt: Prompt,
) -> None:
    """Create an encryption root with a passphrase that is asked for twice.

    :param iterations: of PBKDF2
    :raises WrongPassphrase: if no two answers were the same and long enough
    :raises ZfsError: as load()
    """
    options = {"iterations": iterations, "properties": dict(properties)}
    await _hold(root, prompt, "create", options)


async def change(
    root: str, iterations: int, prompt: Prompt, typed: bool = False
) -> None:
    """Give *root* another passphrase, after the present one was asked for.

    A key that was not loaded is not loaded afterwards.

    :param typed: as of load()
    :raises NoPassphrase: if the present key is made from none
    :raises Busy: if that was done, but the key could not be unloaded again
    :raises ZfsError: as load() and create()
    """
    found = await state(root)
    must_be_passphrase(root, found)
    was_loaded = found.loaded
    options = {"iterations": iterations, "typed": typed}
    await _hold(root, prompt, "change", options)
    if not was_loaded:
        with contextlib.suppress(errors.Locked):
            await unload(root)


async def unload(root: str) -> None:
    """Forget the key of *root*.

    :raises Locked: if it is not loaded
    :raises Busy: naming who holds which volume open
    """
    try:
        await devices.retry_busy(root, lambda: lzc.unload_key(root))
    except errors.Busy as exc:
        found = await lzc.in_thread(root, users, root)
        who = tuple(
            f"{dataset.removeprefix(root + '/')}: {', '.join(names)}"
            for dataset, names in sorted(found.items())
        )
        raise errors.busy(exc, who) from exc


def users(root: str) -> dict[str, tuple[str, ...]]:
    """Who holds which zvols below *root* open, in words."""
    found = {}
    for path in Path(devices.link(root)).rglob("*"):
        dataset = devices.dataset_of(str(path))
        if path.is_symlink() and dataset is not None:
            names = devices.holders(dataset)
            if names:
                found[dataset] = names
    return found


# --- the process that holds the key


async def _hold(
    root: str, prompt: Prompt, verb: str, options: Mapping[str, Any]
) -> None:
    typed = bool(options.get("typed"))
    limit: float | None = PATIENCE
    async with _keyholder(typed, verb, root, json.dumps(options)) as (
        words,
        answers,
    ):
        while True:
            word, detail = await _next(words, root, limit)
            limit = PATIENCE
            if word == "done":
                return
            if word in _ENDS:
                raise _ENDS[word](root, detail)
            if word == "deriving":
                limit += int(detail) / SLOWEST
            elif word != "answered":
                await prompt(word, answers)
                # who types may take as long as they like
                limit = None if typed else PATIENCE


async def _next(
    words: asyncio.StreamReader, root: str, limit: float | None
) -> tuple[str, str]:
    """The keyholder's next word, and what follows it.

    :raises Silent: if none comes for *limit* seconds
    """
    try:
        line = await asyncio.wait_for(words.readline(), limit)
    except TimeoutError as exc:
        raise errors.Silent(root, limit or 0.0) from exc
    if not line:
        raise errors.CommandFailed(
            "keyholder", 1, "the process for the passphrase ended; try again"
        )
    word, _, detail = line.decode(errors="replace").strip().partition(" ")
    return word, detail


@contextlib.asynccontextmanager
async def _keyholder(
    typed: bool, *arguments: str
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """The process: what it says, and where answers go.

    It ends when it is left, whatever happened: nothing that a cancelled
    verb began is waited for.

    :param typed: it has our standard input, and no answer goes anywhere
    """
    theirs, ours = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", _START, str(_FOLDER)),
                *arguments,
                stdin=None if typed else theirs,
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": ":".join(commands.FOLDERS), "LC_ALL": "C"},
            )
        finally:
            os.close(theirs)
        try:
            yield cast(asyncio.StreamReader, process.stdout), ours
        finally:
            await _end(process)
    finally:
        os.close(ours)


#: processes that were killed and have not ended yet
_ending: set[asyncio.Task[int]] = set()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the keyholder and wait until it has, but not for a disk.

    It may have a passphrase: it is asked to end, and wipes that first.
    """
    end = asyncio.create_task(process.wait())
    _ending.add(end)
    end.add_done_callback(_ending.discard)
    try:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait([end], timeout=GRACE)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    done, _ = await asyncio.wait([end], timeout=END_LIMIT)
    if not done:
        LOG.warning(
            "keyholder, process %d: killed, and waits for ZFS", process.pid
        )


def _failed(root: str, detail: str) -> errors.ZfsError:
    code, _, call = detail.partition(" ")
    return errors.from_errno(int(code), root, call)


def _wrong(root: str, purpose: str) -> errors.ZfsError:
    if purpose.startswith("new"):
        return errors.NoNewPassphrase(root)
    return errors.WrongPassphrase(root)


#: the keyholder's last words -> the exception
_ENDS: Mapping[str, Callable[[str, str], errors.ZfsError]] = {
    End.FAILED: _failed,
    End.WRONG: _wrong,
    End.BAD_ANSWER: lambda root, _: errors.BadAnswer(root),
    End.NO_ANSWER: lambda root, _: errors.NoAnswer(root),
    End.BAD_PARAMETERS: errors.BadIterations,
    End.UNPROTECTED: errors.Unprotected,
}
