# SPDX-License-Identifier: BSD-2-Clause
"""The keyholder: a process that handles one passphrase and exits.

It reads the answers to prompts from its standard input, derives the wrapping
key, passes the key to ZFS and exits.  So no other process, such as qubesd or a
tool, ever has a passphrase or a key in its memory.  It writes one word a line
to its standard output (keywords.py): a Purpose when it waits for an answer,
Progress, and an End if it failed.

::

    keyholder load|create|change ROOT OPTIONS

OPTIONS is JSON; see Request in keywords.py.
"""

import asyncio
import contextlib
import errno
import hashlib
import secrets
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import answers, commands, lzc
from .errors import Busy, CommandFailed, Exists, Locked, ZfsError
from .keywords import (
    ITERATIONS,
    LONGEST,
    SHORTEST,
    Action,
    End,
    Progress,
    Purpose,
    Request,
)
from .secrecy import Unprotected, protect_memory, wipe, wipe_copies

#: zio_encrypt and zfs_keyformat_t values, which libzfs_core takes
AES_256_GCM = 8
PASSPHRASE = 3

KEY_LENGTH = 32  # bytes
#: prompts for one passphrase, at most
TRIES = 3

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The request was not carried out.

    :ivar end: the last word to write
    :ivar detail: text that follows that word
    """

    def __init__(self, end: End, detail: object = "") -> None:
        """Create the failure with the last word and its detail."""
        super().__init__(end, detail)
        self.end = end
        self.detail = detail


def say(*words: object) -> None:
    """Write a line to the process that started the keyholder (keys.py)."""
    print(*words, flush=True)


class Asker:
    """Asks for one passphrase, :py:data:`TRIES` times at most.

    _carry_out() creates one, for one request.
    """

    def __init__(self, typed: bool) -> None:
        """Create an Asker.

        :param typed: whether the standard input is that of a tool
        """
        self._typed = typed
        self._tries = 0

    def restart(self) -> None:
        """Reset the number of prompts, before asking for another passphrase."""
        self._tries = 0

    def ask(self, purpose: Purpose) -> bytearray:
        """Return the answer to a prompt.

        :raises Stopped: after too many prompts, or if the input is invalid
        :raises CallerGone: if keys.py no longer waits for this process
        """
        self._tries += purpose is not Purpose.NEW_AGAIN
        if self._tries > TRIES:
            raise Stopped(End.WRONG, purpose)
        try:
            answer = self._read(purpose)
        except answers.BadLine as exc:
            raise Stopped(End.BAD_ANSWER) from exc
        except answers.Ended as exc:
            raise Stopped(End.NO_ANSWER) from exc
        say(Progress.ANSWERED)
        return answer

    def _read(self, purpose: Purpose) -> bytearray:
        with _stoppable():
            if not self._typed:
                say(purpose)
                return answers.read_piped()
            with answers.without_echo():
                say(purpose)
                return answers.read_typed()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals end the process inside this context.

    Elsewhere they are blocked, because the process has secrets to wipe first.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


@contextlib.contextmanager
def wrapping_key(
    passphrase: bytearray, salt: int, iterations: int
) -> Iterator[bytes]:
    """Derive the wrapping key as zfs(8) does; wipe it at the end.

    See derive_key() in libzfs_crypto.c.
    """
    key = hashlib.pbkdf2_hmac(
        "sha1", passphrase, struct.pack("<Q", salt), iterations, KEY_LENGTH
    )
    try:
        yield key
    finally:
        wipe(key)


@contextlib.contextmanager
def _derived(
    passphrase: bytearray, salt: int, iterations: int
) -> Iterator[bytes]:
    """Derive the key, report the iterations, and wipe all copies at the end."""
    say(Progress.DERIVING, iterations)
    with wrapping_key(passphrase, salt, iterations) as key:
        try:
            yield key
        finally:
            wipe_copies(key)


def parameters(root: str) -> tuple[int, int]:
    """Return salt and iterations of the key of an encryption root.

    This asks zfs(8), because channel programs return wrong values of these
    properties.  The values come from the disk.  A large number of iterations
    would keep this process busy for hours, so it is refused.

    :raises Stopped: if zfs(8) cannot have set the values
    :raises CommandFailed: if zfs(8) refuses
    """
    _, output = asyncio.run(
        commands.run(
            "zfs",
            *("get", "-Hp", "-o", "value", "pbkdf2salt,pbkdf2iters"),
            root,
        )
    )
    salt, _, iterations = output.partition("\n")
    if not salt.isdecimal() or not iterations.isdecimal():
        raise Stopped(End.BAD_PARAMETERS, iterations or "-")
    if int(salt) >= 1 << 64 or int(iterations) not in ITERATIONS:
        raise Stopped(End.BAD_PARAMETERS, iterations)
    return int(salt), int(iterations)


def ask_present_passphrase(root: str, asker: Asker) -> bool:
    """Ask for the passphrase of *root* until it is correct; load the key.

    :return: whether the key was already loaded
    :raises Stopped: if no answer was correct
    """
    salt, iterations = parameters(root)
    purpose = Purpose.UNLOCK
    asker.restart()
    while True:
        passphrase = asker.ask(purpose)
        purpose = Purpose.UNLOCK_AGAIN
        try:
            with _derived(passphrase, salt, iterations) as key:
                return _load(root, key)
        except Locked:
            continue
        finally:
            wipe(passphrase)


def _load(root: str, key: bytes) -> bool:
    try:
        lzc.load_key(root, key)
    except Exists:
        lzc.load_key(root, key, check_only=True)
        return True
    return False


def new_passphrase(asker: Asker) -> bytearray:
    """Ask for a new passphrase until it is valid and was entered twice.

    :raises Stopped: after too many prompts, or if the input is invalid
    """
    purpose = Purpose.NEW
    asker.restart()
    while True:
        first = asker.ask(purpose)
        if not SHORTEST <= len(first) <= LONGEST:
            wipe(first)
            purpose = Purpose.NEW_SHORT
            continue
        try:
            second = asker.ask(Purpose.NEW_AGAIN)
        except BaseException:
            wipe(first)
            raise
        same = first == second
        wipe(second)
        if same:
            return first
        wipe(first)
        purpose = Purpose.NEW_DIFFERS


def _with_new_key(
    iterations: int,
    asker: Asker,
    use: Callable[[Mapping[str, lzc.Value], bytes], None],
) -> None:
    """Ask for a new passphrase and call *use* with its properties and key.

    :param iterations: of PBKDF2
    """
    salt = secrets.randbits(64)
    properties: dict[str, lzc.Value] = {
        "keyformat": PASSPHRASE,
        "keylocation": "prompt",
        "pbkdf2iters": iterations,
        "pbkdf2salt": salt,
    }
    passphrase = new_passphrase(asker)
    try:
        with _derived(passphrase, salt, iterations) as key:
            use(properties, key)
    finally:
        wipe(passphrase)


def create(request: Request, asker: Asker) -> None:
    """Create an encryption root with a new passphrase.

    :raises Stopped: if no valid passphrase was entered
    """

    def use(properties: Mapping[str, lzc.Value], key: bytes) -> None:
        own = {"encryption": AES_256_GCM, **request.properties}
        lzc.create_root(request.root, {**own, **properties}, key)

    _with_new_key(request.iterations, asker, use)


def change(request: Request, asker: Asker) -> None:
    """Change the passphrase after the present one was entered.

    :raises Stopped: if one of the two was not entered
    """
    root = request.root
    was_loaded = ask_present_passphrase(root, asker)
    try:
        _with_new_key(
            request.iterations,
            asker,
            lambda properties, key: lzc.change_key(root, properties, key),
        )
    finally:
        if not was_loaded:
            # udev may be probing the new nodes; keys.change() retries
            with contextlib.suppress(Busy, Locked):
                asyncio.run(lzc.unload_key(root))


def _carry_out(request: Request) -> None:
    """Carry out a request.

    :raises Stopped: if it failed
    """
    asker = Asker(request.typed)
    try:
        protect_memory()
        if request.action is Action.LOAD:
            ask_present_passphrase(request.root, asker)
        elif request.action is Action.CREATE:
            create(request, asker)
        else:
            change(request, asker)
    except Unprotected as exc:
        raise Stopped(End.UNPROTECTED, exc) from exc
    except CommandFailed as exc:
        raise Stopped(End.FAILED, f"{errno.EIO} {exc}") from exc
    except ZfsError as exc:
        raise Stopped(End.FAILED, f"{exc.code} {exc.call}") from exc


def _give_up(*_: object) -> None:
    raise answers.CallerGone


def main(arguments: Sequence[str]) -> int:
    """Carry out the request of the command line; return the exit status."""
    request = Request.parse(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    for number in _STOPS:
        signal.signal(number, _give_up)
    try:
        _carry_out(request)
    except answers.CallerGone:
        return 1
    except Stopped as exc:
        say(exc.end, exc.detail)
        return 1
    say(Progress.DONE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
