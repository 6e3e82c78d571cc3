# SPDX-License-Identifier: BSD-2-Clause
"""Files in /run by which qubesd's process and the tools tell each other things.

They are root's and end with the boot.
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
    """Write when qubesd will unload the key of a pool.

    A failure is logged: the file is only information.

    :param root: the encryption root
    :param due: seconds, as now() counts them; None: no time is set
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

    :param root: the encryption root that the pool has
    :return: None if no time is set or known
    """
    if "/" in pool:
        # a name from a disk must not lead to another file
        return None
    try:
        note = json.loads(_due_file(pool).read_text())
        if note["root"] != root or note["due"] is None:
            return None
        return max(0.0, float(note["due"]) - now())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_due(pool: str) -> None:
    """Remove the file of a pool that qubesd has no more."""
    try:
        _due_file(pool).unlink()
    except OSError:
        pass
