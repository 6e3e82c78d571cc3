# SPDX-License-Identifier: BSD-2-Clause
"""Pointers: what the property says that names a volume's current generation.

This is the only module in Python that knows the grammar; ``lib/pointer.lua``
knows it for the channel programs::

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
    """A text that is no pointer, or no specification of a volume."""


@dataclass(frozen=True)
class VolumeSpec:
    """What a blank generation is created with.

    :ivar size: bytes
    :ivar blocksize: bytes; None: as the pool's option volblocksize says
    """

    size: int
    blocksize: int | None = None

    def __str__(self) -> str:
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
    """Which generation of a volume is current, and what it was made of.

    :ivar generation: its number
    :ivar is_disposable: its content is discarded at stop
    :ivar spec: what a disposable one was created for; None in a pointer of an
        earlier version
    :ivar copied_from: what it is a fresh copy of, if the volume begins anew at
        each start: the id of a revision, or "blank"
    :ivar copy: number of the revision that is no more than that copy
    """

    generation: int
    is_disposable: bool = False
    spec: VolumeSpec | None = None
    copied_from: str | None = None
    copy: int | None = None

    def __str__(self) -> str:
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
        """Parse the value of a pointer.

        :raises BadPointer: if it is none
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
