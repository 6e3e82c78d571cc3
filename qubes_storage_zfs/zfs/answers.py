# SPDX-License-Identifier: BSD-2-Clause
"""Read the answers to the keyholder's prompts from its standard input.

The standard input is a pipe from the service qubes.AskPassword, which writes
one line for each prompt, or the standard input of a tool: a terminal, or lines
that a program wrote.  Only the process of keyholder.py imports this module.
"""

import contextlib
import os
import select
import signal
import termios
from collections.abc import Iterator

from .keywords import LONGEST
from .secrecy import wipe


class BadLine(Exception):
    """The input is not one line of text."""


class CallerGone(Exception):
    """The process that started the keyholder has closed its pipe."""


class Ended(Exception):
    """The standard input ended without a line."""


def read_piped() -> bytearray:
    """Read one line from the service's pipe; return it without its end.

    :raises BadLine: if the line is too long, contains a NUL, or is followed by
        more data
    :raises CallerGone: if the pipe was closed
    """
    buffer = bytearray(2 * LONGEST)
    length = 0
    try:
        while b"\n" not in buffer:
            count = os.readv(0, [memoryview(buffer)[length:]])
            if count == 0:
                raise CallerGone if length < len(buffer) else BadLine
            length += count
        end = buffer.index(b"\n")
        if length > end + 1:
            raise BadLine
        return _checked(buffer[:end])
    finally:
        wipe(buffer)


def read_typed() -> bytearray:
    """Read one line of a tool's standard input; return it without its end.

    This reads byte by byte, so that the next line stays in the pipe.

    :raises BadLine: if the line is too long or contains a NUL
    :raises Ended: if the input ended before the line did
    :raises CallerGone: if the process that reads our output has ended
    """
    line = bytearray(2 * LONGEST)
    try:
        for length in range(len(line)):
            _wait_for_input()
            if os.readv(0, [memoryview(line)[length : length + 1]]) == 0:
                raise Ended
            if line[length] == ord("\n"):
                return _checked(line[:length])
        raise BadLine
    finally:
        wipe(line)


def _checked(answer: bytearray) -> bytearray:
    if b"\0" in answer:
        wipe(answer)
        raise BadLine
    return answer


def _wait_for_input() -> None:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(1, 0)
    if any(fd == 1 for fd, _ in poll.poll()):
        raise CallerGone


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Turn off the echo of a terminal, except for the end of a line."""
    if not os.isatty(0):
        yield
        return
    # a process in the background must be able to restore the terminal as well
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    before = termios.tcgetattr(0)
    quiet = termios.tcgetattr(0)
    quiet[3] = quiet[3] & ~termios.ECHO | termios.ECHONL
    termios.tcsetattr(0, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        # a terminal that was closed cannot be restored
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
