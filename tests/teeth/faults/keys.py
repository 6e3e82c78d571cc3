"""Faults of what is read from a disk about its key, and of waiting for it."""

from .base import Fault

KEYHOLDER = "tests/unit/test_keyholder.py::test_"

FAULTS = (
    Fault(
        "the disk says how long a key takes",
        "zfs/keyholder.py",
        "or int(iterations) not in ITERATIONS:",
        "or False:",
        (KEYHOLDER + "iterations_out_of_bounds_are_refused",),
    ),
    Fault(
        "what the disk says of a key is taken for a number",
        "zfs/keyholder.py",
        "if not salt.isdecimal() or not iterations.isdecimal():",
        "if False:",
        (KEYHOLDER + "parameters_that_are_none_are_refused",),
    ),
    Fault(
        "a keyholder that is stuck is waited for",
        "zfs/keys.py",
        "await asyncio.wait_for(words.readline(), limit)",
        "await words.readline()",
        (KEYHOLDER + "stuck_keyholder_is_killed_and_others_go_on",),
    ),
    Fault(
        "a keyholder that waits in the kernel is waited for",
        "zfs/keys.py",
        "await asyncio.wait([end], timeout=END_LIMIT)",
        "await asyncio.wait([end], timeout=60)",
        (KEYHOLDER + "keyholder_that_does_not_die_is_not_waited_for",),
    ),
)
