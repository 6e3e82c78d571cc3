# SPDX-License-Identifier: BSD-2-Clause
"""dom0's clock is set back between two sessions of a qube."""

import contextlib
import time

from ..support.zpools import sh

DAY = 86400


@contextlib.contextmanager
def yesterday():
    sh("date", "-s", f"@{int(time.time()) - DAY}")
    try:
        yield
    finally:
        sh("date", "-s", f"@{int(time.time()) + DAY}")


def test_revisions_stay_in_order_when_the_clock_goes_back(lab):
    volume = lab.private(content=b"one", revisions_to_keep=9)
    with yesterday():
        lab.session(volume, b"two")
        lab.session(volume, b"three")
    lab.session(volume, b"four")
    dates = volume.revisions
    assert list(dates) == ["r1", "r2", "r3", "r4"]
    # core-admin's ListSnapshots sorts like this; the client takes the last one
    by_date = sorted(dates, key=dates.__getitem__)
    assert by_date == list(dates)
    lab.run(volume.revert(by_date[-1]))
    assert lab.content(volume) == b"three"
