# SPDX-License-Identifier: BSD-2-Clause
"""Load and unload keys of encryption roots, without seeing a passphrase.

This module runs the keyholder (keyholder.py), a process that handles one
passphrase.  When the keyholder asks for an answer, this module calls a prompt.
The prompt sends the answer to the keyholder through a pipe, or the keyholder
reads it from the terminal.
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

#: shows a prompt and writes the answer to the file descriptor; if the keyholder
#: reads the answer itself, it shows the text only
Prompt = Callable[[Purpose, int], Awaitable[None]]

#: seconds that the keyholder may take between two words
PATIENCE = 120.0
#: iterations of PBKDF2 that a slow machine makes in one second; the keyholder
#: gets the time for its iterations in addition
SLOWEST = 50_000
#: seconds that the keyholder has to wipe its memory before it is killed
GRACE = 2.0
#: seconds to wait for the end of a killed keyholder; a call in the kernel that
#: waits for a disk does not end before the disk answers
END_LIMIT = 5.0

_FOLDER = Path(__file__).resolve().parents[2]
#: imports this copy of the package, and nothing from the environment or the
#: current folder; Ctrl-C ends the process without a traceback
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " sys.path.insert(0, sys.argv.pop(1));"
    f" from {__package__}.keyholder import main; sys.exit(main(sys.argv[1:]))"
)


class PromptFailed(errors.Failure):
    """A prompt returned no answer; the message has the reason."""


class NoPrompt(PromptFailed):
    """No prompt was shown, because no qube, session or program can show one."""


@dataclass(frozen=True)
class KeyState:
    """The state of a dataset and its key, when state() asked for it.

    :ivar exists: whether the dataset exists
    :ivar root: the encryption root of the dataset; None if it is not encrypted
    :ivar loaded: whether the key is loaded
    :ivar format: "passphrase", "hex" or "raw"; None if there is no key
    :ivar read_only_by: the dataset whose readonly=on is in force; None if the
        dataset is writable
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
    """Return the state of a dataset and its key.

    :param batch: batch to run the program in; None: run it alone
    :raises ZfsError: if ZFS does not answer
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
    """Load the key of *root*; if it is loaded already, check the passphrase.

    :param prompt: called for each prompt
    :param typed: whether the keyholder reads the answers from the standard
        input that it shares with this process; *prompt* then only shows a text
    :raises WrongPassphrase: if three answers were wrong
    :raises BadAnswer: if a prompt did not return one line of text
    :raises NoAnswer: if the standard input ended
    :raises BadIterations: if the iterations on the disk are out of bounds
    :raises Silent: if the keyholder did not answer in time
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
    """Check that the key of *root* is derived from a passphrase.

    :raises NoPassphrase: if the key is hex or raw
    """
    reason = obstacle(root, key)
    if reason is not None:
        raise reason


async def create(
    root: str,
    iterations: int,
    properties: Mapping[str, lzc.Value],
    prompt: Prompt,
) -> None:
    """Create an encryption root with a passphrase that is entered twice.

    :param iterations: of PBKDF2
    :param properties: native and user properties of the root
    :raises NoNewPassphrase: if no two answers were valid and equal
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
    """Change the passphrase of *root* after the present one was entered.

    A key that was not loaded before is not loaded afterwards.

    :param iterations: of PBKDF2 for the new key
    :param typed: as for load()
    :raises NoPassphrase: if the present key is not derived from a passphrase
    :raises Busy: if the passphrase was changed, but the key could not be
        unloaded again
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

    :raises Locked: if the key is not loaded
    :raises Busy: if volumes are open, with the holders of each
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
    """Return the open zvols below *root* with descriptions of the holders."""
    open_volumes = {}
    for path in Path(devices.link(root)).rglob("*"):
        dataset = devices.dataset_of(str(path))
        if path.is_symlink() and dataset is not None:
            names = devices.holders(dataset)
            if names:
                open_volumes[dataset] = names
    return open_volumes


# --- the keyholder


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
                # no limit for the user at a terminal
                limit = None if request.typed else PATIENCE


async def _next(
    words: asyncio.StreamReader, root: str, limit: float | None
) -> tuple[str, str]:
    """Return the next word of the keyholder, and its detail.

    :raises Silent: if the keyholder writes nothing for *limit* seconds
    """
    try:
        line = await asyncio.wait_for(words.readline(), limit)
    except TimeoutError as exc:
        raise errors.Silent(root, limit or 0.0) from exc
    if not line:
        raise errors.CommandFailed(
            "keyholder",
            1,
            "the process that reads the passphrase exited early; try again",
        )
    word, _, detail = line.decode(errors="replace").strip().partition(" ")
    return word, detail


@contextlib.asynccontextmanager
async def _keyholder(
    request: Request,
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Start the keyholder; yield its output and the pipe for the answers.

    When the context is left, the process has ended, also if the operation was
    cancelled.  A process that waits in the kernel for a disk ends later.
    """
    read_end, write_end = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", _START, str(_FOLDER)),
                *request.arguments,
                stdin=None if request.typed else read_end,
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": ":".join(commands.FOLDERS), "LC_ALL": "C"},
            )
        finally:
            os.close(read_end)
        try:
            yield cast(asyncio.StreamReader, process.stdout), write_end
        finally:
            await _end(process)
    finally:
        os.close(write_end)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate the keyholder; wait for its end, but not for a disk.

    SIGTERM lets it wipe a passphrase in its memory first.
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
            "the keyholder (process %d) was killed, but still waits for ZFS",
            process.pid,
        )


def _failed(root: str, detail: str) -> errors.ZfsError:
    code, _, call = detail.partition(" ")
    return errors.from_errno(int(code), root, call)


def _wrong(root: str, purpose: str) -> errors.ZfsError:
    if Purpose(purpose).is_new:
        return errors.NoNewPassphrase(root)
    return errors.WrongPassphrase(root)


#: last word of the keyholder -> function that makes the exception
_ENDS: Mapping[str, Callable[[str, str], errors.ZfsError]] = {
    End.FAILED: _failed,
    End.WRONG: _wrong,
    End.BAD_ANSWER: lambda root, _: errors.BadAnswer(root),
    End.NO_ANSWER: lambda root, _: errors.NoAnswer(root),
    End.BAD_PARAMETERS: errors.BadIterations,
    End.UNPROTECTED: errors.Unprotected,
}
