"""Copy a volume's bytes without writing zeroes and without using up memory."""

import contextlib
import os
import threading

from . import core, device

BLOCK = 1 << 20  # bytes
#: bytes between two flushes, which bounds what is dirty in memory
FLUSH_EVERY = 64 << 20


async def sparse_copy(source: str, target: str) -> None:
    """Copy *source* to *target*, a device that reads as zeroes throughout.

    All of it was given to ZFS when this returns, so it is on disk when the
    next transaction group is.  A cancelled copy stops at the next block.

    :raises OSError: if reading or writing fails
    """
    stop = threading.Event()
    await core.in_thread(_copy, source, target, stop, stop=stop)


def _copy(source: str, target: str, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        reader = device.open_node(source, os.O_RDONLY)
        stack.callback(os.close, reader)
        writer = device.open_node(target, os.O_WRONLY)
        stack.callback(os.close, writer)
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        zeroes = bytes(BLOCK)
        offset = flushed = 0
        while not stop.is_set():
            length = os.readv(reader, [buffer])
            if length == 0:
                break
            if view[:length] != zeroes[:length]:
                _write(writer, view[:length], offset)
            offset += length
            if offset - flushed >= FLUSH_EVERY:
                _flush(reader, writer, flushed, offset - flushed)
                flushed = offset
        _flush(reader, writer, flushed, offset - flushed)


def _write(writer: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(writer, data, offset)
        data = data[written:]
        offset += written


def _flush(reader: int, writer: int, offset: int, length: int) -> None:
    device.write_out(writer, offset, length)
    for descriptor in (reader, writer):
        # a pipe has no page cache to be spared
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
