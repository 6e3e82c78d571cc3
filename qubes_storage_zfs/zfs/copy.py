# SPDX-License-Identifier: BSD-2-Clause
"""Copy the bytes of a volume without writing zeroes or filling the memory."""

import contextlib
import os
import threading

from . import devices, lzc, threads

BLOCK = 1 << 20  # bytes
#: bytes that are read while the same number is written out; this limits the
#: dirty pages in memory
WINDOW = 32 << 20


async def sparse_copy(source: str, target: str) -> None:
    """Copy *source* to *target*, a device that contains zeroes only.

    When this returns, ZFS has all the data in an open transaction group, and
    the data is on disk when that group is.  A cancelled copy stops at the next
    block.

    :param source: path of a device, a file or a pipe
    :param target: path of a zvol
    :raises OSError: if reading or writing fails
    """
    stop = threading.Event()
    subject = threads.both(
        devices.dataset_of(source) or threads.NO_ZPOOL,
        devices.dataset_of(target) or threads.NO_ZPOOL,
    )
    await lzc.in_thread(subject, _copy, source, target, stop, stop=stop)


def _copy(source: str, target: str, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        reader = devices.open_node(source, os.O_RDONLY)
        stack.callback(os.close, reader)
        writer = devices.open_node(target, os.O_WRONLY)
        stack.callback(os.close, writer)
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        zeroes = bytes(BLOCK)
        offset = window = 0
        under_way = (0, 0)
        while not stop.is_set():
            length = os.readv(reader, [buffer])
            if length == 0:
                break
            # compare the whole buffer: comparing a memoryview is slow
            if length < BLOCK or buffer != zeroes:
                _write(writer, view[:length], offset)
            offset += length
            if offset - window >= WINDOW:
                devices.write_out(writer, window, offset - window, wait=False)
                _flush(reader, writer, *under_way)
                under_way, window = (window, offset - window), offset
        for first, size in under_way, (window, offset - window):
            _flush(reader, writer, first, size)


def _write(writer: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(writer, data, offset)
        data = data[written:]
        offset += written


def _flush(reader: int, writer: int, offset: int, length: int) -> None:
    if not length:
        return
    devices.write_out(writer, offset, length)
    for descriptor in (reader, writer):
        # a pipe has no page cache
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
