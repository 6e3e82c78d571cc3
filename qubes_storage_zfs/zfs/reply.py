# SPDX-License-Identifier: BSD-2-Clause
"""Read the results of channel programs, with types.

Lua has one kind of table, so a list arrives as a dictionary with the keys "1",
"2" and so on.  Names and values may come from a disk that another machine
wrote, so each value is checked where it is read.
"""

import errno
from collections.abc import Iterator, Mapping

from .errors import ZfsError


class BadReply(ZfsError):
    """A channel program returned a value of a type that its header excludes."""


def _bad(problem: str, value: object) -> BadReply:
    return BadReply("a channel program", errno.EBADMSG, f"{problem}: {value!r}")


class Reply:
    """The result of one channel program, or a value in it; immutable.

    An absent field and a nil result count as empty, because Lua does not
    distinguish a field that is nil from one that is missing.
    """

    def __init__(self, value: object = None) -> None:
        """Wrap a value that zcp.decode() returned; None is nil."""
        self._value = value

    def __repr__(self) -> str:
        """Return the value, for the log."""
        return f"Reply({self._value!r})"

    def has(self, name: str) -> bool:
        """Return whether the reply is a table with that field."""
        return isinstance(self._value, Mapping) and name in self._value

    def table(self) -> Mapping[str, object]:
        """Return the reply as a table; nil is an empty one.

        :raises BadReply: if the reply is not a table
        """
        if self._value is None:
            return {}
        if not isinstance(self._value, Mapping):
            raise _bad("not a table", self._value)
        return self._value

    def _items(self) -> Iterator[object]:
        """Yield the items of a list, in order."""
        table = self.table()
        try:
            for key in sorted(table, key=int):
                yield table[key]
        except ValueError as exc:
            raise _bad("not a list", self._value) from exc

    def is_none(self) -> bool:
        """Return whether the reply is nil."""
        return self._value is None

    def as_text(self) -> str:
        """Return the reply as text.

        :raises BadReply: if the reply is not text
        """
        if not isinstance(self._value, str):
            raise _bad("not a text", self._value)
        return self._value

    def as_number(self) -> int:
        """Return the reply as a number.

        :raises BadReply: if the reply is not a number
        """
        if isinstance(self._value, bool) or not isinstance(self._value, int):
            raise _bad("not a number", self._value)
        return self._value

    def as_flag(self) -> bool:
        """Return the reply as a boolean; nil is False."""
        return bool(self._value)

    def at(self, name: str) -> "Reply":
        """Return the value of a field of a table."""
        return Reply(self.table().get(name))

    def text(self, name: str) -> str | None:
        """Return a field as text, also if it is a number; None if absent."""
        value = self.table().get(name)
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """Return a field as a number; None if absent.

        :raises BadReply: if the field is not a number
        """
        field = self.at(name)
        return None if field.is_none() else field.as_number()

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a field as a boolean; *default* if absent."""
        field = self.at(name)
        return default if field.is_none() else field.as_flag()

    def items(self) -> list["Reply"]:
        """Return the items of a list, in order."""
        return [Reply(item) for item in self._items()]

    def texts(self) -> list[str]:
        """Return the items of a list as texts, in order."""
        return [item.as_text() for item in self.items()]

    def numbers(self) -> list[int]:
        """Return the items of a list as numbers, in order."""
        return [item.as_number() for item in self.items()]

    def text_by_name(self) -> dict[str, str]:
        """Return a table of texts: name -> text."""
        return {name: Reply(x).as_text() for name, x in self.table().items()}

    def number_by_name(self) -> dict[str, int]:
        """Return a table of numbers: name -> number."""
        return {name: Reply(x).as_number() for name, x in self.table().items()}
