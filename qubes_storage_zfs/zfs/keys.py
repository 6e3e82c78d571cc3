"""Keys of encryption roots: asked for, loaded, forgotten; never held here.

A process of its own deals with each passphrase, see keyholder.py.  What is
done here is to run it, and to have a person asked when it wants an answer,
which goes from the prompt to it through a pipe.
"""

import asyncio
import contextlib
import errno
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from . import channel, core, device, errors, native

#: has a person asked: what for (a word of keyholder.py), and the file
#: descriptor that the answer is to be written to
Prompt = Callable[[str, int], Awaitable[None]]

#: how often a person is asked for one passphrase
TRIES = 3

_FOLDER = Path(__file__).resolve().parents[2]
#: this very package, whatever else is installed; and nothing of the
#: environment or the current directory
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    f" from {__package__}.keyholder import main; sys.exit(main(sys.argv[1:]))"
)


class NotAsked(Exception):
    """A prompt returned no answer; the text says why, as part of a sentence."""


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
    )


async def load(root: str, prompt: Prompt) -> None:
    """Load the key of *root*; if it is loaded, have the passphrase checked.

    :raises WrongPassphrase: if three answers were wrong
    :raises BadAnswer: if one was none
    :raises ZfsError: if ZFS refuses
    """
    await _hold(root, prompt, "load", root)


async def create(
    root: str,
    iterations: int,
    properties: Mapping[str, core.Value],
    prompt: Prompt,
) -> None:
    """Create an encryption root with a passphrase that is asked for twice.

    :param iterations: of PBKDF2
    :raises WrongPassphrase: if no two answers were the same and long enough
    :raises BadAnswer: if one was none
    :raises ZfsError: if ZFS refuses
    """
    options = {"iterations": iterations, "properties": dict(properties)}
    await _hold(root, prompt, "create", root, json.dumps(options))


async def change(root: str, iterations: int, prompt: Prompt) -> None:
    """Give *root* another passphrase, after the present one was asked for.

    A key that was not loaded is not loaded afterwards.

    :raises Busy: if that was done, but the key could not be unloaded again
    :raises ZfsError: as load() and create()
    """
    was_loaded = (await state(root)).loaded
    options = {"iterations": iterations}
    await _hold(root, prompt, "change", root, json.dumps(options))
    if not was_loaded:
        with contextlib.suppress(errors.Locked):
            await unload(root)


async def unload(root: str) -> None:
    """Forget the key of *root*.

    :raises Locked: if it is not loaded
    :raises Busy: naming who holds which volume open
    """
    try:
        await device.retry_busy(root, lambda: core.unload_key(root))
    except errors.Busy as exc:
        found = await core.in_thread(users, root)
        who = tuple(
            f"{dataset.removeprefix(root + '/')}: {', '.join(names)}"
            for dataset, names in sorted(found.items())
        )
        raise errors.Busy(root, exc.code, exc.call, who) from exc


def users(root: str) -> dict[str, tuple[str, ...]]:
    """Who holds which zvols below *root* open, in words."""
    found = {}
    for path in Path(device.link(root)).rglob("*"):
        dataset = device.dataset_of(str(path))
        if path.is_symlink() and dataset is not None:
            names = device.holders(dataset)
            if names:
                found[dataset] = names
    return found


# --- the process that holds the key


async def _hold(root: str, prompt: Prompt, *arguments: str) -> None:
    tries = 0
    async with _keyholder(*arguments) as (words, answers):
        while True:
            word, *more = (await words.readline()).decode().split() or [""]
            if word == "done":
                return
            if word == "failed":
                raise _failure(root, int(more[0]), " ".join(more[1:]))
            if not word:
                raise errors.CommandFailed("keyholder", 1, "it ended")
            if word in ("unlock", "new"):
                tries = 0
            tries += word != "new-again"
            if tries > TRIES:
                raise errors.WrongPassphrase(root, errno.EACCES, word)
            await prompt(word, answers)


@contextlib.asynccontextmanager
async def _keyholder(
    *arguments: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """The process: what it says, and where answers go.

    It ends when it is left, whatever happened: nothing that a cancelled
    verb began is waited for.
    """
    theirs, ours = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", _START, str(_FOLDER)),
                *arguments,
                stdin=theirs,
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": ":".join(native.FOLDERS), "LC_ALL": "C"},
            )
        finally:
            os.close(theirs)
        try:
            yield cast(asyncio.StreamReader, process.stdout), ours
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    finally:
        os.close(ours)


def _failure(root: str, code: int, call: str) -> errors.ZfsError:
    if code == errno.EBADMSG:
        return errors.BadAnswer(root, code, call)
    return errors.from_errno(code, root, call)
