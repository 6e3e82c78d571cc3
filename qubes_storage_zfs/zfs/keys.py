# SPDX-License-Identifier: BSD-2-Clause
"""Keys of encryption roots: loaded and unloaded; passphrases never come here.

A process of its own deals with each passphrase, see keyholder.py.  This module
runs it and has a prompt shown when it asks for an answer.  The answer goes from
the prompt to the keyholder through a pipe, or from the terminal to it.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from . import channel, commands, devices, errors, lzc, runtime
from .batch import Batch
from .keywords import Action, End, Progress, Purpose, Request

LOG = logging.getLogger("qubes.storage.zfs")

#: shows a prompt; the file descriptor is where its answer is to be written to.
#: If the keyholder reads the answer itself, it only shows the text
Prompt = Callable[[Purpose, int], Awaitable[None]]

#: seconds that the keyholder may take from one word to the next
PATIENCE = 120.0
#: iterations of PBKDF2 that a slow machine makes in one more second
SLOWEST = 50_000
#: seconds that the keyholder has to wipe its memory before it is killed
GRACE = 2.0
#: seconds that keys.py waits for a killed keyholder: a call in the kernel that
#: waits for a disk ends when the disk answers
END_LIMIT = 5.0

_FOLDER = Path(__file__).resolve().parents[2]
#: import this package, whatever else is installed, and nothing from the
#: environment or the current directory; Ctrl-C ends it without a traceback
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " sys.path.insert(0, sys.argv.pop(1));"
    f" from {__package__}.keyholder import main; sys.exit(main(sys.argv[1:]))"
)


class PromptFailed(errors.Failure):
    """A prompt returned no answer; the message is the reason."""


class NoPrompt(PromptFailed):
    """No prompt was shown: no domain, session or program can show one."""


@dataclass(frozen=True)
class KeyState:
    """A dataset and its key.

    :ivar exists: whether the dataset exists
    :ivar root: the encryption root of the dataset; None if it is not encrypted
    :ivar loaded: whether the key is loaded
    :ivar format: passphrase, hex or raw; None if there is no key
    :ivar read_only_by: the dataset whose readonly=on is in force here; None if
        the dataset is writable
    """

    exists: bool
    root: str | None
    loaded: bool
    format: str | None
    read_only_by: str | None = None

    @property
    def locked(self) -> bool:
        """Whether the dataset is encrypted and its key is not loaded."""
        return self.root is not None and not self.loaded


async def state(dataset: str, batch: Batch | None = None) -> KeyState:
    """Ask ZFS about a dataset and its key.

    :param batch: ask together with the tasks of this batch
    :raises ZfsError: if ZFS cannot be asked
    """
    reply = await channel.read("key", dataset, {"dataset": dataset}, batch)
    return KeyState(
        exists=reply.flag("exists"),
        root=reply.text("root"),
        loaded=reply.flag("loaded"),
        format=reply.text("format"),
        read_only_by=reply.text("read_only_by"),
    )


async def load(root: str, prompt: Prompt, typed: bool = False) -> None:
    """Load the key of *root*; if it is loaded, have the passphrase checked.

    :param typed: the keyholder reads the answers from the standard input of
        this process, which never sees them; *prompt* only shows the text
    :raises WrongPassphrase: if three answers were wrong
    :raises BadAnswer: if a prompt did not return one line of text
    :raises NoAnswer: if the standard input ended
    :raises BadIterations: if the iterations on the disk would take hours
    :raises Silent: if the keyholder got stuck
    :raises Unprotected: if the keyholder could not protect its memory
    :raises ZfsError: if ZFS refuses
    """
    await _run_keyholder(Request(Action.LOAD, root, typed), prompt)


def obstacle(root: str, key: KeyState) -> errors.NoPassphrase | None:
    """Return why no passphrase can unlock *root*; None if one can."""
    if key.root != root or not key.format or key.format == "passphrase":
        return None
    return errors.NoPassphrase(root, key.format)


def require_passphrase(root: str, key: KeyState) -> None:
    """Refuse a root whose key is not made from a passphrase.

    :raises NoPassphrase: if the key is hex or raw
    """
    wrong = obstacle(root, key)
    if wrong is not None:
        raise wrong


async def create(
    root: str,
    iterations: int,
    properties: Mapping[str, lzc.Value],
    prompt: Prompt,
) -> None:
    """Create an encryption root with a passphrase that is entered twice.

    :param iterations: of PBKDF2
    :raises NoNewPassphrase: if no two answers matched and were long enough
    :raises ZfsError: as load()
    """
    await _run_keyholder(
        Request(
            Action.CREATE,
            root,
            iterations=iterations,
            properties=dict(properties),
        ),
        prompt,
    )


async def change(
    root: str, iterations: int, prompt: Prompt, typed: bool = False
) -> None:
    """Change the passphrase of *root*, after the present one was entered.

    A key that was not loaded is not loaded afterwards.

    :param typed: as of load()
    :raises NoPassphrase: if the present key is not made from a passphrase
    :raises Busy: if that was done, but the key could not be unloaded again
    :raises ZfsError: as load() and create()
    """
    key = await state(root)
    require_passphrase(root, key)
    await _run_keyholder(
        Request(Action.CHANGE, root, typed, iterations), prompt
    )
    if not key.loaded:
        with contextlib.suppress(errors.Locked):
            await unload(root)


async def unload(root: str) -> None:
    """Unload the key of *root*.

    :raises Locked: if it is not loaded
    :raises Busy: naming the holders of each volume that is open
    """
    try:
        await devices.retry_busy(root, lambda: lzc.unload_key(root))
    except errors.Busy as exc:
        holders = await lzc.in_thread(root, open_zvols, root)
        texts = tuple(
            f"{dataset.removeprefix(root + '/')}: {', '.join(names)}"
            for dataset, names in sorted(holders.items())
        )
        raise errors.busy(exc, texts) from exc


def open_zvols(root: str) -> dict[str, tuple[str, ...]]:
    """Return each zvol below *root* that is open -> its holders, as texts."""
    open_volumes = {}
    for path in Path(devices.link(root)).rglob("*"):
        dataset = devices.dataset_of(str(path))
        if path.is_symlink() and dataset is not None:
            names = devices.holders(dataset)
            if names:
                open_volumes[dataset] = names
    return open_volumes


# --- the process that has the key


async def _run_keyholder(request: Request, prompt: Prompt) -> None:
    root, limit = request.root, cast(float | None, PATIENCE)
    async with _keyholder(request) as (words, answers):
        while True:
            word, detail = await _next(words, root, limit)
            limit = PATIENCE
            if word == Progress.DONE:
                return
            if word in _ENDS:
                raise _ENDS[End(word)](root, detail)
            if word == Progress.DERIVING:
                limit += int(detail) / SLOWEST
            elif word != Progress.ANSWERED:
                await prompt(Purpose(word), answers)
                # a person at a terminal may take any time
                limit = None if request.typed else PATIENCE


async def _next(
    words: asyncio.StreamReader, root: str, limit: float | None
) -> tuple[str, str]:
    """Return the keyholder's next word and its detail.

    :raises Silent: if no word comes for *limit* seconds
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
    request: Request,
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Start the keyholder; yield its output and where answers are written to.

    The process has ended when the context is left, whatever happened, so a
    cancelled operation leaves none behind.
    """
    theirs, ours = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", _START, str(_FOLDER)),
                *request.arguments,
                stdin=None if request.typed else theirs,
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


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the keyholder and wait until it has ended, but not for a disk.

    It may have a passphrase in memory: SIGTERM lets it wipe that first.
    """
    end = asyncio.create_task(process.wait())
    runtime.of(runtime.Tasks).keep(end)
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
    if Purpose(purpose).is_new:
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
