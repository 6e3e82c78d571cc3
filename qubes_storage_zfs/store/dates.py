# SPDX-License-Identifier: BSD-2-Clause
"""Dates of revisions, in the order of their numbers whatever the clock did.

core-admin sorts revisions by date (ListSnapshots in qubes/api/admin.py), and
'qvm-volume revert' without a revision takes the last.  dom0's clock may have
gone back between two revisions, and what ZFS wrote down is read from a disk.
"""

from collections.abc import Iterable

#: the last second that a date can have: 9999-12-31T23:59:59
LAST = 253402300799


def rising(creations: Iterable[int]) -> list[int]:
    """Return the times of revisions, oldest revision first, none earlier than
    the one before.

    A time that is earlier becomes one second more than the one before: a clock
    that was reset is behind more often than ahead.  Equal times stay, because
    core-admin's sort keeps the order that it is given.

    :param creations: seconds since the epoch, as ZFS reports them
    """
    rising_dates: list[int] = []
    for creation in creations:
        before = rising_dates[-1] if rising_dates else 0
        rising_dates.append(creation if creation >= before else before + 1)
    limit = LAST
    for index in reversed(range(len(rising_dates))):
        rising_dates[index] = min(rising_dates[index], limit)
        limit = rising_dates[index]
    return rising_dates
