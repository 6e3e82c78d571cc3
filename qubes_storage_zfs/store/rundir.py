# SPDX-License-Identifier: BSD-2-Clause
"""Files in /run in which qubesd reports to the tools when it unloads a key.

Only root can write to them, and they are deleted at boot.
"""

import json
import logging
import os
import time
from pathlib import Path

LOG = logging.getLogger("qubes.storage.zfs")

RUN_DIR = Path("/run/qubes-storage-zfs")


def now() -> float:
    """Return seconds since boot, including time spent suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _due_file(pool: str) -> Path:
    return RUN_DIR / f"{pool}.json"


def write_due(pool: str, root: str, due: float | None) -> None:
    """Write the time at which qubesd will unload the key of a pool.

    A failure is only logged, because no decision depends on the file.

    :param root: the encryption root of the pool
    :param due: seconds on the clock of now(); None: no time is set
    """
    file = _due_file(pool)
    try:
        RUN_DIR.mkdir(mode=0o755, exist_ok=True)
        temporary = file.with_name(f".{pool}")
        temporary.write_text(json.dumps({"root": root, "due": due}))
        os.replace(temporary, file)
    except OSError as exc:
        LOG.debug("%s: %s", file, exc)


def seconds_left(pool: str, root: str) -> float | None:
    """Return the seconds until qubesd unloads the key of a pool.

    :param root: the encryption root of the pool; a file for another is ignored
    :return: None if no time is set, or the file cannot be read
    """
    if "/" in pool:
        # the name of a pool may come from a disk: stay in the directory
        return None
    try:
        note = json.loads(_due_file(pool).read_text())
        if note["root"] != root or note["due"] is None:
            return None
        return max(0.0, float(note["due"]) - now())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_due(pool: str) -> None:
    """Delete the file of a pool that was removed from qubesd."""
    try:
        _due_file(pool).unlink()
    except OSError:
        pass
