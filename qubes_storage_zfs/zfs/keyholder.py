"""The process that deals with one passphrase, and ends.

It reads the answers to prompts from its standard input, makes the wrapping
key, hands it to ZFS and ends; so no other process, qubesd and the tools least
of all, ever has a passphrase or a key in its memory.  It writes to its
standard output, a word a line:

- the purpose of the next prompt, when it waits for the answer;
- ``answered`` when it has read one;
- ``deriving`` and the iterations, before it makes a key;
- at the end ``done``, or why not, see End in keywords.py.

::

    keyholder load ROOT OPTIONS     load the key; if it is, check the answer
    keyholder create ROOT OPTIONS   create the root; it must not exist
    keyholder change ROOT OPTIONS   another passphrase, after the present one

OPTIONS is JSON: typed (whether the standard input is a person's, not a
service's), but for load the iterations of PBKDF2, and for create the
properties.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import secrets
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import answers, commands, lzc
from .answers import LONGEST, SHORTEST
from .errors import Busy, CommandFailed, Exists, Locked, ZfsError
from .keywords import ITERATIONS, End
from .secrecy import Unprotected, keep_to_itself, wipe, wipe_copies

#: zio_encrypt and zfs_keyformat_t values, which libzfs_core takes
AES_256_GCM = 8
PASSPHRASE = 3

KEY_LENGTH = 32  # bytes
#: how often a person is asked for one passphrase
TRIES = 3

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """There will be no key.

    :ivar end: the word for it
    :ivar detail: and what follows that
    """

    def __init__(self, end: End, detail: object = "") -> None:
        super().__init__(end, detail)
        self.end = end
        self.detail = detail


def say(*words: object) -> None:
    print(*words, flush=True)


class Asker:
    """Asks for one passphrase, a few times.

    :param typed: whether the standard input is a person's
    """

    def __init__(self, typed: bool) -> None:
        self._typed = typed
        self._tries = 0

    def begin(self) -> None:
        """Count the prompts for another passphrase."""
        self._tries = 0

    def ask(self, purpose: str) -> bytearray:
        """Return the answer to a prompt.

        :raises Stopped: if it was asked too often, or came no answer
        :raises GaveUp: if nobody waits for this process any more
        """
        self._tries += purpose != "new-again"
        if self._tries > TRIES:
            raise Stopped(End.WRONG, purpose)
        try:
            answer = self._read(purpose)
        except answers.BadLine as exc:
            raise Stopped(End.BAD_ANSWER) from exc
        except answers.Ended as exc:
            raise Stopped(End.NO_ANSWER) from exc
        say("answered")
        return answer

    def _read(self, purpose: str) -> bytearray:
        with _stoppable():
            if not self._typed:
                say(purpose)
                return answers.piped()
            with answers.unseen():
                say(purpose)
                return answers.typed()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Signals end the process within this only: else secrets are wiped."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


@contextlib.contextmanager
def wrapping_key(
    passphrase: bytearray, salt: int, iterations: int
) -> Iterator[bytes]:
    """The key as zfs(8) makes it (derive_key() in libzfs_crypto.c)."""
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
    """As wrapping_key(), for this process: it says how long it takes, and no
    copy that was made meanwhile is left in its memory."""
    say("deriving", iterations)
    with wrapping_key(passphrase, salt, iterations) as key:
        try:
            yield key
        finally:
            wipe_copies(key)


def parameters(root: str) -> tuple[int, int]:
    """Salt and iterations of a root, which programs are told wrong.

    They are what is on the disk: the iterations may be any number, and a
    large one would keep this process busy for hours.

    :raises Stopped: if they cannot be those of a key
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


def present_passphrase(root: str, asker: Asker) -> bool:
    """Ask for the passphrase of *root* until it is right, and load the key;
    whether it was loaded before."""
    salt, iterations = parameters(root)
    purpose = "unlock"
    asker.begin()
    while True:
        passphrase = asker.ask(purpose)
        purpose = "unlock-again"
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
    """Ask for a passphrase twice, until both are one that zfs(8) takes."""
    purpose = "new"
    asker.begin()
    while True:
        first = asker.ask(purpose)
        if not SHORTEST <= len(first) <= LONGEST:
            wipe(first)
            purpose = "new-short"
            continue
        try:
            second = asker.ask("new-again")
        except BaseException:
            wipe(first)
            raise
        same = first == second
        wipe(second)
        if same:
            return first
        wipe(first)
        purpose = "new-differs"


def _with_new_key(
    iterations: int,
    asker: Asker,
    use: Callable[[Mapping[str, lzc.Value], bytes], None],
) -> None:
    """Give *use* the properties of a new key, and the key."""
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


def create(root: str, options: Mapping[str, Any], asker: Asker) -> None:
    def use(properties: Mapping[str, lzc.Value], key: bytes) -> None:
        given = {"encryption": AES_256_GCM, **options["properties"]}
        lzc.create_root(root, {**given, **properties}, key)

    _with_new_key(options["iterations"], asker, use)


def change(root: str, options: Mapping[str, Any], asker: Asker) -> None:
    was_loaded = present_passphrase(root, asker)
    try:
        _with_new_key(
            options["iterations"],
            asker,
            lambda properties, key: lzc.change_key(root, properties, key),
        )
    finally:
        if not was_loaded:
            # udev may be looking at what appeared: the caller tries longer
            with contextlib.suppress(Busy, Locked):
                asyncio.run(lzc.unload_key(root))


def _run(verb: str, root: str, options: Mapping[str, Any]) -> None:
    """:raises Stopped: if it came to nothing"""
    asker = Asker(bool(options.get("typed")))
    try:
        keep_to_itself()
        if verb == "load":
            present_passphrase(root, asker)
        elif verb == "create":
            create(root, options, asker)
        else:
            change(root, options, asker)
    except Unprotected as exc:
        raise Stopped(End.UNPROTECTED, exc) from exc
    except CommandFailed as exc:
        raise Stopped(End.FAILED, f"{errno.EIO} {exc}") from exc
    except ZfsError as exc:
        raise Stopped(End.FAILED, f"{exc.code} {exc.call}") from exc


def _give_up(*_: object) -> None:
    raise answers.GaveUp


def main(arguments: Sequence[str]) -> int:
    verb, root, options = arguments
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    for number in _STOPS:
        signal.signal(number, _give_up)
    try:
        _run(verb, root, json.loads(options))
    except answers.GaveUp:
        return 1
    except Stopped as exc:
        say(exc.end.value, exc.detail)
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
