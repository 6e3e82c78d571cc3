# SPDX-License-Identifier: BSD-2-Clause
"""Wait for other processes, udev and the kernel."""

import time


def until(condition, purpose, seconds=20.0):
    """Wait until *condition()* is true; return its value.

    :raises AssertionError: if that takes longer than *seconds*
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {purpose}"
        time.sleep(0.05)
    return value
