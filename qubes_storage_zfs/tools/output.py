# SPDX-License-Identifier: BSD-2-Clause
"""Print the output of the tool; no other module of ``tools/`` prints.

Names, marks and property values come from disks, and a terminal interprets
control characters.  So every line is escaped here.
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
    """Print a prompt on the standard error, without a newline."""
    _print(text, sys.stderr, end="")


def say_json(value: object) -> None:
    """Print *value* as JSON with all other characters than ASCII escaped."""
    print(json.dumps(value, indent=2))


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    """Print *text* escaped, also on a terminal that has not all characters."""
    line = printable(text)
    encoding = stream.encoding or "ascii"
    shown = line.encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=stream, end=end, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser whose errors show no control characters of the command line."""

    def error(self, message: str) -> NoReturn:
        """Print *message* escaped, and exit with status 2."""
        super().error(printable(message))
