# SPDX-License-Identifier: BSD-2-Clause
"""Find out whether dom0's kernel overwrites freed memory (init_on_free)."""

import gzip
import re
from pathlib import Path

WORDS = Path("/proc/cmdline")
CONFIG = Path("/proc/config.gz")
DEFAULT_ON = b"\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n"

#: values that the kernel reads as yes and no (kstrtobool(): first letters)
_YES = re.compile(r"[yYtT1]|[oO][nN]")
_NO = re.compile(r"[nNfF0]|[oO][fF]")

NOT_OVERWRITTEN = (
    "dom0's kernel does not overwrite freed memory, so traces of passphrases may"
    " remain in memory after a pool is locked; add init_on_free=1 to the kernel"
    " command line, see install.md in the package's documentation"
)


def overwritten() -> bool:
    """Return whether the kernel overwrites freed memory.

    The last init_on_free on the command line with a valid value decides; else
    the default that the kernel was built with.
    """
    is_on: bool | None = None
    for word in WORDS.read_text("utf-8", "replace").split():
        name, _, value = word.replace("-", "_").partition("=")
        if name == "init_on_free":
            if _YES.match(value):
                is_on = True
            elif _NO.match(value):
                is_on = False
    return _default() if is_on is None else is_on


def _default() -> bool:
    """Return the default of the kernel; False if it does not show its config."""
    try:
        return DEFAULT_ON in gzip.decompress(CONFIG.read_bytes())
    except OSError:
        return False
