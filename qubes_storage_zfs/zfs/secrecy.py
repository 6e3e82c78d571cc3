# SPDX-License-Identifier: BSD-2-Clause
"""What a process that has a secret does about its own memory."""

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
#: what can be written and is no file's: heap, stack, anonymous mappings
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ 0 +(\[.*)?$")
#: bytes of a secret that are looked for: the allocator overwrites some of
#: what is freed, so a copy may be there in part
_PIECE = 8
_CHUNK = 1 << 16  # bytes


class Unprotected(Exception):
    """The kernel refused a protection; the text names it and the reason."""


def wipe(secret: bytearray | bytes) -> None:
    """Overwrite it in memory; bytes too, which nothing may use any more."""
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif secret:
        header = bytes.__basicsize__ - 1
        ctypes.memset(id(secret) + header, 0, len(secret))


def wipe_copies(secret: bytes) -> None:
    """Overwrite *secret*, and each copy and piece of one in this process.

    libzfs_core copies a key into lists of names and values and frees them as
    they are (lzc_load_key() and nvlist_free()), and the kernel does not
    overwrite the pages of a process that ended.  They are read and written
    through a file: an address that is none is an error there and no crash.
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
    """Addresses of all that may hold a copy, _CHUNK apart."""
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
    """Keep this process' memory out of swap, core dumps and other processes.

    Call it before the process reads a secret.

    :raises Unprotected: if the kernel refuses one of these
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # without CAP_SYS_RESOURCE the limit stays, and mlockall() may still do
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
