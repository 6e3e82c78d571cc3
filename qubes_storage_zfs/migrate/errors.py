# SPDX-License-Identifier: BSD-2-Clause
"""Failures of migrating a pool, and of undoing that."""

from ..store import messages


class Refused(messages.Refused):
    """A pool cannot be migrated, for one reason or several.

    :ivar reasons: a sentence for each
    """

    def __init__(self, template: str, /, *more: str, **data: object) -> None:
        super().__init__(template, **data)
        self.reasons = (str(self), *more)


class NotARecord(ValueError):
    """A text that migrating does not write.

    :ivar part: the part that is wrong, or all of it
    """

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part
