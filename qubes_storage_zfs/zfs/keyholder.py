"""The process that deals with one passphrase, and ends.

It gets the answers to prompts on its standard input, makes the wrapping key,
hands it to ZFS and ends; so no other process, qubesd least of all, ever has
a passphrase or a key in its memory.  What it wants is written to its standard
output, a word a line: what the next prompt is for, until ``done`` or
``failed`` with an errno and what failed.

::

    keyholder load ROOT             load the key; if it is, check the answer
    keyholder create ROOT OPTIONS   create the root; it must not exist
    keyholder change ROOT OPTIONS   another passphrase, after the present one

OPTIONS is JSON: iterations (of PBKDF2), and for create the properties.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from . import core, native
from .errors import Busy, CommandFailed, Exists, Locked, ZfsError
from .native import keep_to_itself, wipe

#: bytes; what zfs(8) takes as a passphrase
SHORTEST, LONGEST = 8, 512
#: zio_encrypt and zfs_keyformat_t values, which libzfs_core takes
AES_256_GCM = 8
PASSPHRASE = 3

KEY_LENGTH = 32  # bytes


class Garbage(Exception):
    """What came was no answer of a person."""


class GaveUp(Exception):
    """The other end of the standard input is gone."""


def say(*words: object) -> None:
    print(*words, flush=True)


def read_answer() -> bytearray:
    """The answer to a prompt: one line, without its end.

    :raises Garbage: if it is too long, has a NUL in it or more behind it
    :raises GaveUp: if none comes any more
    """
    buffer = bytearray(2 * LONGEST)
    length = 0
    while b"\n" not in buffer:
        count = os.readv(0, [memoryview(buffer)[length:]])
        if count == 0:
            raise GaveUp if length < len(buffer) else Garbage
        length += count
    end = buffer.index(b"\n")
    answer = buffer[:end]
    wipe(buffer)
    if length > end + 1 or b"\0" in answer:
        wipe(answer)
        raise Garbage
    return answer


@contextlib.contextmanager
def wrapping_key(passphrase: bytearray, salt: int, iterations: int) -> Any:
    """The key as zfs(8) makes it (derive_key() in libzfs_crypto.c)."""
    key = hashlib.pbkdf2_hmac(
        "sha1", passphrase, struct.pack("<Q", salt), iterations, KEY_LENGTH
    )
    try:
        yield key
    finally:
        wipe(key)


def parameters(root: str) -> tuple[int, int]:
    """Salt and iterations of a root, which programs are told wrong.

    :raises CommandFailed: if zfs(8) refuses
    """
    _, output = asyncio.run(
        native.run(
            "zfs",
            *("get", "-Hp", "-o", "value", "pbkdf2salt,pbkdf2iters"),
            root,
        )
    )
    salt, iterations = output.split()
    return int(salt), int(iterations)


def present_passphrase(root: str) -> bool:
    """Ask for the passphrase of *root* until it is right, and load the key;
    whether it was loaded before."""
    salt, iterations = parameters(root)
    purpose = "unlock"
    while True:
        say(purpose)
        purpose = "unlock-again"
        passphrase = read_answer()
        try:
            with wrapping_key(passphrase, salt, iterations) as key:
                return _load(root, key)
        except Locked:
            continue
        finally:
            wipe(passphrase)


def _load(root: str, key: bytes) -> bool:
    try:
        core.load_key(root, key)
    except Exists:
        core.load_key(root, key, check_only=True)
        return True
    return False


def new_passphrase() -> bytearray:
    """Ask for a passphrase twice, until both are one that zfs(8) takes."""
    purpose = "new"
    while True:
        say(purpose)
        first = read_answer()
        if not SHORTEST <= len(first) <= LONGEST:
            wipe(first)
            purpose = "new-short"
            continue
        say("new-again")
        second = read_answer()
        same = first == second
        wipe(second)
        if same:
            return first
        wipe(first)
        purpose = "new-differs"


def _with_new_key(iterations: int, use: Any) -> None:
    """Give *use* the properties of a new key, and the key."""
    salt = secrets.randbits(64)
    properties = {
        "keyformat": PASSPHRASE,
        "keylocation": "prompt",
        "pbkdf2iters": iterations,
        "pbkdf2salt": salt,
    }
    passphrase = new_passphrase()
    try:
        with wrapping_key(passphrase, salt, iterations) as key:
            use(properties, key)
    finally:
        wipe(passphrase)


def create(root: str, options: Mapping[str, Any]) -> None:
    def use(properties: Mapping[str, core.Value], key: bytes) -> None:
        given = {"encryption": AES_256_GCM, **options["properties"]}
        core.create_root(root, {**given, **properties}, key)

    _with_new_key(options["iterations"], use)


def change(root: str, options: Mapping[str, Any]) -> None:
    was_loaded = present_passphrase(root)
    try:
        _with_new_key(
            options["iterations"],
            lambda properties, key: core.change_key(root, properties, key),
        )
    finally:
        if not was_loaded:
            # udev may be looking at what appeared: the caller tries longer
            with contextlib.suppress(Busy, Locked):
                asyncio.run(core.unload_key(root))


def main(arguments: Sequence[str]) -> int:
    verb, root, *more = arguments
    options = json.loads(more[0]) if more else {}
    keep_to_itself()
    try:
        if verb == "load":
            present_passphrase(root)
        elif verb == "create":
            create(root, options)
        else:
            change(root, options)
    except GaveUp:
        return 1
    except Garbage:
        say("failed", errno.EBADMSG, "answer")
        return 1
    except CommandFailed as exc:
        say("failed", errno.EIO, exc)
        return 1
    except ZfsError as exc:
        say("failed", exc.code, exc.call)
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
