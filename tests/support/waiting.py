# SPDX-License-Identifier: BSD-2-Clause
"""Wait for what other processes, udev and the kernel do in their own time."""

import time


def until(condition, what, seconds=20.0):
    """Wait until *condition()* is true; return its value.

    :raises AssertionError: if that takes longer than *seconds*
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value
