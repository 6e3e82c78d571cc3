# SPDX-License-Identifier: BSD-2-Clause
"""What a channel program returned, read with types.

Lua has one kind of table: a list arrives as a dictionary with the keys "1",
"2" and so on.  Names and values of properties may come from a disk that
another machine wrote, so each is checked where it is read.
"""

import errno
from collections.abc import Iterator, Mapping

from .errors import ZfsError


class BadReply(ZfsError):
    """A channel program returned something else than its header says."""


def _bad(why: str, value: object) -> BadReply:
    return BadReply("a channel program", errno.EBADMSG, f"{why}: {value!r}")


class Reply:
    """The result of one channel program, or a table in it.

    A name that is absent, and a result that is nil, count as empty: Lua does
    not distinguish a field that is nil from one that is missing.
    """

    def __init__(self, value: object = None) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Reply({self._value!r})"

    def has(self, name: str) -> bool:
        """Return whether this is a table with that field."""
        return isinstance(self._value, Mapping) and name in self._value

    def table(self) -> Mapping[str, object]:
        """Return the table that the reply is.

        :raises BadReply: if it is none
        """
        if self._value is None:
            return {}
        if not isinstance(self._value, Mapping):
            raise _bad("no table", self._value)
        return self._value

    def _items(self) -> Iterator[object]:
        """Yield what is in a list, in its order."""
        table = self.table()
        try:
            for key in sorted(table, key=int):
                yield table[key]
        except ValueError as exc:
            raise _bad("no list", self._value) from exc

    def is_none(self) -> bool:
        """Return whether the program returned nothing."""
        return self._value is None

    def as_text(self) -> str:
        """Return the text that the reply is.

        :raises BadReply: if it is none
        """
        if not isinstance(self._value, str):
            raise _bad("no text", self._value)
        return self._value

    def as_number(self) -> int:
        """Return the number that the reply is.

        :raises BadReply: if it is none
        """
        if isinstance(self._value, bool) or not isinstance(self._value, int):
            raise _bad("no number", self._value)
        return self._value

    def as_flag(self) -> bool:
        """Return the truth value that the reply is; nothing is false."""
        return bool(self._value)

    def at(self, name: str) -> "Reply":
        """Return what is in a field of a table."""
        return Reply(self.table().get(name))

    def text(self, name: str) -> str | None:
        """Return the text in a field, or a number as text; None if absent."""
        value = self.table().get(name)
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """Return the number in a field; None if absent.

        :raises BadReply: if it is none
        """
        field = self.at(name)
        return None if field.is_none() else field.as_number()

    def flag(self, name: str, default: bool = False) -> bool:
        """Return the truth value in a field."""
        field = self.at(name)
        return default if field.is_none() else field.as_flag()

    def items(self) -> list["Reply"]:
        """Return what is in a list, in its order."""
        return [Reply(item) for item in self._items()]

    def texts(self) -> list[str]:
        """Return the texts in a list, in their order."""
        return [item.as_text() for item in self.items()]

    def numbers(self) -> list[int]:
        """Return the numbers in a list, in their order."""
        return [item.as_number() for item in self.items()]

    def text_by_name(self) -> dict[str, str]:
        """Return a table whose values are texts."""
        return {name: Reply(x).as_text() for name, x in self.table().items()}

    def number_by_name(self) -> dict[str, int]:
        """Return a table whose values are numbers."""
        return {name: Reply(x).as_number() for name, x in self.table().items()}
