# SPDX-License-Identifier: BSD-2-Clause
"""Contents in which each 4 KiB block identifies itself.

A content has the name "<qube>/<volume>#<number>"; no number is used twice.
A block repeats the name of the content and its own number.
"""

from itertools import groupby

BLOCK = 4096
#: the name of a block of zeroes
ZERO = "0"
_LINE = 64


def block(name: str, number: int) -> bytes:
    """Return one block of the content *name*."""
    line = f"{name} {number} ".encode("ascii")
    return line.ljust(_LINE, b".") * (BLOCK // _LINE)


def extent(name: str, first: int, count: int) -> bytes:
    return b"".join(block(name, first + i) for i in range(count))


def _name(data: bytes, number: int) -> str:
    if not any(data):
        return ZERO
    name, _, rest = data[:_LINE].decode("ascii", "replace").partition(" ")
    if rest.partition(" ")[0] == str(number) and data == block(name, number):
        return name
    return f"torn or misplaced: {data[:_LINE]!r} ... {data[-_LINE:]!r}"


def names(data: bytes) -> list[str]:
    """Return the name of each block in *data*, which starts with block 0."""
    return [
        _name(data[offset : offset + BLOCK], offset // BLOCK)
        for offset in range(0, len(data), BLOCK)
    ]


def packed(blocks: list[str]) -> list[tuple[str, int]]:
    """Return runs of equal names, which make a report shorter."""
    return [(name, len(list(run))) for name, run in groupby(blocks)]


def unpacked(runs: list[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(name for name, count in runs for _ in range(count))
