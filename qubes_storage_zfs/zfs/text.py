# SPDX-License-Identifier: BSD-2-Clause
"""Text that comes from a disk: bytes to str and back, and what may be shown.

A name or a property value on a disk may be any bytes.  Inside the process it
is a str that from_disk() made; to_disk() gives the same bytes back.  Such a
str must not be printed, logged or encoded in any other way: terminals obey
control characters, and a lone surrogate cannot be encoded.  printable() is
the one place where it becomes text for a person.
"""

import logging

#: more of one value is not shown: a property value may have 8 KiB
SHOWN = 200


def from_disk(value: bytes) -> str:
    """Return *value* as a str that to_disk() can turn back."""
    return value.decode(errors="surrogateescape")


def to_disk(text: str) -> bytes:
    """Return the bytes of *text*, the reverse of from_disk()."""
    return text.encode(errors="surrogateescape")


def printable(text: str, limit: int | None = None) -> str:
    """Return *text* as one line without control characters.

    Whatever a terminal could act upon, line ends and tabs included, becomes
    an escape sequence as in Python; so does a byte that is not UTF-8.

    :param limit: characters after which the rest is cut off
    """
    line = "".join(map(_shown, text))
    if limit is not None and len(line) > limit:
        return line[:limit] + "..."
    return line


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        # what from_disk() made of a byte that is not UTF-8
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable_record(record: logging.LogRecord) -> bool:
    """Make the message of *record* printable; a filter for a logger."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True
