# SPDX-License-Identifier: BSD-2-Clause
"""How the keyholder reads the answers to its prompts: its standard input.

Either a pipe from a service, which writes one line for each prompt, or what
the person has who runs a tool: a terminal, or lines that a program wrote.
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
    """Nobody waits for this process any more."""


class Ended(Exception):
    """The standard input ended without a line."""


def read_piped() -> bytearray:
    """Read the answer of a service: one line, without its end.

    :raises BadLine: if it is too long, has a NUL in it or more behind it
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
    """Read one line and no byte more, without its end.

    :raises BadLine: if it is too long or has a NUL in it
    :raises Ended: if the input ended before the line did
    :raises CallerGone: if the process that reads our output is gone
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
    """Keep a terminal from showing what is typed, but the end of a line."""
    if not os.isatty(0):
        yield
        return
    # a process in the background may put the terminal back, too
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    before = termios.tcgetattr(0)
    quiet = termios.tcgetattr(0)
    quiet[3] = quiet[3] & ~termios.ECHO | termios.ECHONL
    termios.tcsetattr(0, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        # a terminal that was closed has nothing to put back
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
