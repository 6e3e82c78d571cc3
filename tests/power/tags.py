# SPDX-License-Identifier: BSD-2-Clause
"""Content of which each 4 KiB block says whose it is.

A content is named "<qube>/<volume>#<number>"; the numbers are never used
again.  A block of it bears its name and the block's own number, all over.
"""

from itertools import groupby

BLOCK = 4096
#: what a block of zeroes is called
ZERO = "0"
_LINE = 64


def block(name: str, number: int) -> bytes:
    """One block of the content *name*."""
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
    """The name of each block in *data*, which begins with block 0."""
    return [
        _name(data[offset : offset + BLOCK], offset // BLOCK)
        for offset in range(0, len(data), BLOCK)
    ]


def packed(blocks: list[str]) -> list[tuple[str, int]]:
    """Runs of the same name, for a line on the way to the host."""
    return [(name, len(list(run))) for name, run in groupby(blocks)]


def unpacked(runs: list[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(name for name, count in runs for _ in range(count))
