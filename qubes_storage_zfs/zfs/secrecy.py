# SPDX-License-Identifier: BSD-2-Clause
"""Protect and wipe the memory of a process that has a secret."""

import contextlib
import ctypes
import io
import os
import re
import resource
from collections.abc import Iterator

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_MCL_CURRENT_AND_FUTURE = 3  # sys/mman.h

_MEMORY = "/proc/self/mem"
#: writable mappings without a file: heap, stack and anonymous mappings
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ 0 +(\[.*)?$")
#: bytes; a secret is searched for in pieces of this size, because the allocator
#: overwrites parts of freed memory
_PIECE = 8
_CHUNK = 1 << 16  # bytes


class Unprotected(Exception):
    """The kernel refused a protection; the message has call and reason."""


def wipe(secret: bytearray | bytes) -> None:
    """Overwrite a secret in memory.

    :param secret: bytes are overwritten as well, and must not be used again
    """
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif secret:
        header = bytes.__basicsize__ - 1
        ctypes.memset(id(secret) + header, 0, len(secret))


def wipe_copies(secret: bytes) -> None:
    """Overwrite *secret* and its copies, also partial ones, in this process.

    libzfs_core copies a key into nvlists and frees them without overwriting
    them (lzc_load_key() and nvlist_free()).  The kernel does not overwrite the
    pages of a process that ended.

    The memory is read and written through a file, so that an invalid address is
    an error and not a crash.
    """
    pieces = [
        bytearray(secret[at : at + _PIECE])
        for at in range(0, len(secret) - _PIECE + 1, _PIECE)
    ]
    buffer, empty = bytearray(_CHUNK + _PIECE), bytes(_CHUNK + _PIECE)
    with open(_MEMORY, "r+b", buffering=0) as memory:
        for address in _chunks():
            with contextlib.suppress(OSError, OverflowError):
                memory.seek(address)
                length = memory.readinto(buffer)
                if buffer != empty:
                    _wipe_pieces(memory, address, buffer, length, pieces)
    for piece in pieces:
        wipe(piece)
    wipe(buffer)
    wipe(secret)


def _chunks() -> Iterator[int]:
    """Yield the addresses of all memory that may contain a copy, by _CHUNK."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        matches = [_MAPPING.match(line.rstrip("\n")) for line in file]
    for match in filter(None, matches):
        yield from range(int(match[1], 16), int(match[2], 16), _CHUNK)


def _wipe_pieces(
    memory: io.FileIO,
    address: int,
    buffer: bytearray,
    length: int,
    pieces: list[bytearray],
) -> None:
    own = {_address(piece) for piece in pieces}
    for piece in pieces:
        at = buffer.find(piece, 0, length)
        while at >= 0:
            if address + at not in own:
                memory.seek(address + at)
                memory.write(bytes(len(piece)))
            at = buffer.find(piece, at + 1, length)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def protect_memory() -> None:
    """Keep the memory of this process out of swap and core dumps.

    No other process without privileges can read it either.  Call this before
    the process reads a secret.

    :raises Unprotected: if the kernel refuses one of these
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # without CAP_SYS_RESOURCE this fails, but mlockall() may still succeed
    with contextlib.suppress(OSError, ValueError):
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise Unprotected(f"prctl: {os.strerror(ctypes.get_errno())}")
    try:
        os.close(os.open(_MEMORY, os.O_RDWR))
    except OSError as exc:
        raise Unprotected(f"{_MEMORY}: {exc.strerror}") from exc
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE):
        raise Unprotected(f"mlockall: {os.strerror(ctypes.get_errno())}")
