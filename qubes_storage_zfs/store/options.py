# SPDX-License-Identifier: BSD-2-Clause
"""The options of a pool: check and parse text from a user or qubes.xml."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from ..zfs.keywords import ITERATIONS
from . import messages

LOG = logging.getLogger("qubes.storage.zfs")

T = TypeVar("T")

DEFAULT_REVISIONS = 2
DEFAULT_BLOCKSIZE = 16384  # bytes
DEFAULT_TIMEOUT = 1200  # seconds
DEFAULT_ITERATIONS = 350000  # of PBKDF2; the default of zfs(8)

_COMPRESSIONS = re.compile(
    r"(on|off|lzjb|zle|lz4|gzip(-[1-9])?|zstd(-([1-9]|1[0-9]))?)\Z"
)
_BLOCKSIZE = re.compile(r"([1-9][0-9]{0,9})([kKmM]?)\Z")
#: a name that core-admin allows; qubes.AskPassword checks it again
QUBE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}\Z")
#: dedup makes the whole zpool slower until no block remains that was written
#: with it, so its value is a warning
DEDUP_ON = "on-for-ever"
_TRUE = frozenset(("True", "true", "1", "on", "yes"))
_FALSE = frozenset(("False", "false", "0", "off", "no", ""))


class BadOption(messages.Refused, ValueError):
    """An option has a value that it cannot have."""


def _bad(name: str, allowed: str, value: object) -> BadOption:
    return BadOption(
        messages.BAD_OPTION, name=name, allowed=allowed, value=value
    )


def _whole(value: object, least: int, most: int) -> int | None:
    """Return *value* as an integer; None if it is invalid."""
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    return number if least <= number <= most else None


def parse_revisions(value: object) -> int:
    """Return the number of revisions to keep; -1: make none.

    :raises BadOption: unless it is an integer from -1 to 10000
    """
    number = _whole(value, -1, 10000)
    if number is None:
        raise _bad(
            "revisions_to_keep", "a whole number from -1 to 10000", value
        )
    return number


def parse_timeout(value: object) -> int:
    """Return a time in seconds; -1: never.

    :raises BadOption: unless it is an integer from -1 to 2**31
    """
    number = _whole(value, -1, 1 << 31)
    if number is None:
        allowed = "a number of seconds, 0 (at once) or -1 (never)"
        raise _bad("unload_timeout", allowed, value)
    return number


def parse_iterations(value: object) -> int:
    """Return the number of PBKDF2 iterations.

    :raises BadOption: unless zfs.keywords allows that number
    """
    number = _whole(value, ITERATIONS[0], ITERATIONS[-1])
    if number is None:
        allowed = f"a number from {ITERATIONS[0]} to {ITERATIONS[-1]}"
        raise _bad("pbkdf2iters", allowed, value)
    return number


def parse_domain(value: object) -> str:
    """Return the name of the qube that asks for passphrases.

    :raises BadOption: unless a qube can have that name
    """
    if not isinstance(value, str) or not QUBE_NAME.match(value):
        raise _bad("ask_password_domain", "the name of a qube", value)
    return value


def parse_bool(name: str, value: object) -> bool:
    """Return the value of a boolean option.

    :param name: the option, for the message
    :raises BadOption: unless *value* is one of the words for True and False
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _TRUE | _FALSE:
        return value in _TRUE
    raise _bad(name, "True or False", value)


def parse_blocksize(value: object) -> int:
    """Return a block size in bytes.

    :raises BadOption: unless it is a power of two from 4k to 128k
    """
    match = _BLOCKSIZE.match(str(value))
    size = 0
    if match is not None:
        unit = {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]
        size = int(match[1]) * unit
    if not 4096 <= size <= 131072 or size & (size - 1):
        raise _bad("volblocksize", "a power of two from 4k to 128k", value)
    return size


def parse_compression(value: object) -> str:
    """Return the value of ZFS's property ``compression``.

    :raises BadOption: unless ZFS has that value
    """
    if not isinstance(value, str) or not _COMPRESSIONS.match(value):
        allowed = (
            "on, off, lz4, zstd, zstd-1 to zstd-19, gzip, gzip-1 to gzip-9, zle"
            " or lzjb"
        )
        raise _bad("compression", allowed, value)
    return value


def parse_dedup(value: object) -> str:
    """Return the value of ZFS's property ``dedup``.

    :raises BadOption: unless it is ``off`` or DEDUP_ON
    """
    if value not in ("off", DEDUP_ON):
        raise BadOption(messages.BAD_DEDUP, on=DEDUP_ON, value=value)
    return "off" if value == "off" else "on"


def check(options: Mapping[str, object]) -> None:
    """Check the options of a pool; options without a parser are ignored.

    :raises BadOption: if one has a value that it cannot have
    """
    for name, parse in PARSERS.items():
        if options.get(name) is not None:
            parse(options[name])


#: the parser of each option; an absent option has its default value
PARSERS: Mapping[str, Callable[[object], object]] = {
    "revisions_to_keep": parse_revisions,
    "ephemeral_volatile": lambda value: parse_bool("ephemeral_volatile", value),
    "snap_on_start_forensics": lambda value: parse_bool(
        "snap_on_start_forensics", value
    ),
    "tag_qubes": lambda value: parse_bool("tag_qubes", value),
    "volblocksize": parse_blocksize,
    "compression": parse_compression,
    "dedup": parse_dedup,
    "unload_timeout": parse_timeout,
    "opaque_names": lambda value: parse_bool("opaque_names", value),
    "pbkdf2iters": parse_iterations,
    "ask_password_domain": parse_domain,
}


class Values(dict[str, object]):
    """The options of a pool, as qubes.xml or the user gave them.

    The Pool creates it and keeps it as long as it exists.  qubesd writes it to
    qubes.xml without changes.
    """

    def text(self, name: str) -> str | None:
        """Return the text of an option; None if it is absent."""
        value = self.get(name)
        return None if value is None else str(value)

    def parsed(self, name: str, default: T) -> T:
        """Return the value of an option; *default* if it is absent or bad.

        A bad value is logged and does not raise, because qubesd must be able to
        load any qubes.xml.  setup() refuses it.
        """
        if self.get(name) is None:
            return default
        try:
            return cast(T, PARSERS[name](self[name]))
        except BadOption as exc:
            LOG.warning("%s; the default %s is used", exc, default)
            return default
