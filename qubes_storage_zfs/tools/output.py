# SPDX-License-Identifier: BSD-2-Clause
"""The output of the tool: the only module of ``tools/`` that prints.

Names, marks and property values come from disks, and a terminal obeys the
control characters in what is printed.
"""

import argparse
import json
import sys
from typing import NoReturn, TextIO

from ..zfs.text import printable


def say(text: str) -> None:
    """Print *text* as one printable line."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print *text* as one printable line on the standard error."""
    _print(text, sys.stderr)


def ask(text: str) -> None:
    """Print *text* on the standard error, and stay on its line."""
    _print(text, sys.stderr, end="")


def say_json(value: object) -> None:
    """Print *value* as JSON, in which all but ASCII is escaped."""
    print(json.dumps(value, indent=2))


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    line = printable(text)
    encoding = stream.encoding or "ascii"
    # a terminal of another character set is no reason to fail
    shown = line.encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=stream, end=end, flush=True)


class Parser(argparse.ArgumentParser):
    """Prints no control characters of the command line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))
