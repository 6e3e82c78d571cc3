# SPDX-License-Identifier: BSD-2-Clause
"""Pointers: the value of the property that names the current generation.

No other Python module knows the grammar.  ``lib/pointer.lua`` implements it for
the channel programs::

    pointer    = generation [ disposable | copy ]
    disposable = " scratch" [ " " size [ "/" blocksize ] ]
    copy       = " from " source [ " r" revision ]
"""

import re
from dataclasses import dataclass

_DIGITS = r"[0-9]{1,18}"
_SPEC = re.compile(rf"({_DIGITS})(?:/({_DIGITS}))?\Z")
_POINTER = re.compile(
    rf"({_DIGITS})"
    rf"(?:( scratch)(?: ({_DIGITS}(?:/{_DIGITS})?))?"
    rf"| from ([!-~]+)(?: r({_DIGITS}))?)?\Z"
)


class BadPointer(ValueError):
    """A text that is not a pointer, or not the specification of a volume."""


@dataclass(frozen=True)
class VolumeSpec:
    """The size and block size that a blank generation is created with.

    :ivar size: bytes
    :ivar blocksize: bytes; None: the pool's option volblocksize
    """

    size: int
    blocksize: int | None = None

    def __str__(self) -> str:
        """Return the text that parse() accepts."""
        block = "" if self.blocksize is None else f"/{self.blocksize}"
        return f"{self.size}{block}"

    @classmethod
    def parse(cls, text: str) -> "VolumeSpec":
        """Parse "4194304" or "4194304/65536".

        :raises BadPointer: if *text* is neither
        """
        match = _SPEC.match(text)
        if match is None:
            raise BadPointer(f"{text!r} is not the size of a volume")
        size, block = match.groups()
        return cls(int(size), None if block is None else int(block))


@dataclass(frozen=True)
class Pointer:
    """The pointer of a volume: its current generation, and its origin.

    :ivar generation: the number of the current generation
    :ivar is_disposable: whether its content is discarded at stop
    :ivar spec: what a disposable generation was created with; None in a pointer
        that an earlier version wrote
    :ivar copied_from: the id of the revision that it is a copy of, or "blank",
        if the volume is reset at each start (feature zfs.reset-on-start)
    :ivar copy: number of the revision that is nothing but that copy; None:
        there is none
    """

    generation: int
    is_disposable: bool = False
    spec: VolumeSpec | None = None
    copied_from: str | None = None
    copy: int | None = None

    def __str__(self) -> str:
        """Return the value of the property."""
        text = str(self.generation)
        if self.is_disposable:
            text += " scratch"
            text += "" if self.spec is None else f" {self.spec}"
        elif self.copied_from is not None:
            text += f" from {self.copied_from}"
            text += "" if self.copy is None else f" r{self.copy}"
        return text

    @classmethod
    def parse(cls, text: str) -> "Pointer":
        """Parse the value of the property.

        :raises BadPointer: if *text* is not a pointer
        """
        match = _POINTER.match(text)
        if match is None:
            raise BadPointer(f"{text!r} is not a pointer to a generation")
        number, disposable, spec, copied_from, copy = match.groups()
        return cls(
            int(number),
            disposable is not None,
            None if spec is None else VolumeSpec.parse(spec),
            copied_from,
            None if copy is None else int(copy),
        )
