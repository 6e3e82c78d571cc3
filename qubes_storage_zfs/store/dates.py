# SPDX-License-Identifier: BSD-2-Clause
"""Dates of revisions that never decrease, even if dom0's clock was set back.

core-admin sorts revisions by date (ListSnapshots in qubes/api/admin.py), and
'qvm-volume revert' without a revision takes the last one.  So the dates must
have the order of the numbers.  dom0's clock may have been set back between two
revisions, and a disk from another machine may have any date.
"""

from collections.abc import Iterable

#: the last second that a date can have: 9999-12-31T23:59:59
LAST = 253402300799


def rising(creations: Iterable[int]) -> list[int]:
    """Return the dates of revisions, changed so that none decreases.

    A date before its predecessor becomes one second later than the predecessor,
    because a wrong clock is slow more often than fast.  Equal dates are kept:
    core-admin's sort is stable.  No date is later than LAST.

    :param creations: seconds since the epoch as ZFS reports them, oldest
        revision first
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
