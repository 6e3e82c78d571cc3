# SPDX-License-Identifier: BSD-2-Clause
"""Convert text from a disk to str and back, and make it printable.

A name or a property value on a disk may contain any bytes.  from_disk() makes
a str of it, and to_disk() returns the same bytes.  Such a str must not be
printed, logged or encoded in another way, because terminals obey control
characters, and a lone surrogate cannot be encoded.  Only printable() makes text
for a message of it.
"""

import logging

#: characters of one value in a message, at most; a property may have 8 KiB
SHOWN = 200


def from_disk(value: bytes) -> str:
    """Return *value* as a str that to_disk() can turn back."""
    return value.decode(errors="surrogateescape")


def to_disk(text: str) -> bytes:
    """Return the bytes of *text*, the reverse of from_disk()."""
    return text.encode(errors="surrogateescape")


def printable(text: str, limit: int | None = None) -> str:
    """Return *text* as one line without control characters.

    Each character that a terminal could obey, also a line end or a tab, becomes
    an escape sequence as in Python.  So does each byte that is not UTF-8.

    :param limit: number of characters after which the line is cut off
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
        # from_disk() made this of a byte that is not UTF-8
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable_record(record: logging.LogRecord) -> bool:
    """Make the message of *record* printable; this is a filter for a logger."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True
