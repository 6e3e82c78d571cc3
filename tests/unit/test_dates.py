# SPDX-License-Identifier: BSD-2-Clause
"""Dates of revisions rise with their numbers."""

import pytest
import qubes.storage

from qubes_storage_zfs.store.dates import LAST, rising


@pytest.mark.parametrize(
    "creations, dates",
    [
        ([], []),
        ([5], [5]),
        ([5, 7, 9], [5, 7, 9]),
        ([5, 5, 5], [5, 5, 5]),
        ([100, 50, 60, 200], [100, 101, 102, 200]),
        ([-1, 3], [1, 3]),
        ([1 << 62, 3, 4], [LAST, LAST, LAST]),
        ([7, 1 << 62], [7, LAST]),
    ],
)
def test_revision_dates_never_decrease(creations, dates):
    assert rising(creations) == dates
    texts = [qubes.storage.isodate(date) for date in dates]
    assert texts == sorted(texts)
