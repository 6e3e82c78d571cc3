# SPDX-License-Identifier: BSD-2-Clause
"""Failures of migrating a pool, and of undoing that."""

from ..store import messages


class Refused(messages.Refused):
    """A pool cannot be migrated, or a migration cannot be undone.

    :ivar reasons: all reasons, one sentence each
    """

    def __init__(self, template: str, /, *more: str, **data: object) -> None:
        """Fill in *template* with *data* as the first reason.

        :param more: further reasons
        """
        super().__init__(template, **data)
        self.reasons = (str(self), *more)


class NotARecord(ValueError):
    """A text is not a record that a migration writes.

    :ivar part: the part that is wrong, or the whole text
    """

    def __init__(self, part: str) -> None:
        """Name the wrong part."""
        super().__init__(part)
        self.part = part
