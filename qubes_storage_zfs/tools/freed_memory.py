# SPDX-License-Identifier: BSD-2-Clause
"""Whether dom0's kernel overwrites memory that is freed (init_on_free)."""

import gzip
import re
from pathlib import Path

WORDS = Path("/proc/cmdline")
CONFIG = Path("/proc/config.gz")
DEFAULT_ON = b"\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n"

#: what the kernel takes for yes and no, by the first letters (kstrtobool())
_YES = re.compile(r"[yYtT1]|[oO][nN]")
_NO = re.compile(r"[nNfF0]|[oO][fF]")

NOT_OVERWRITTEN = (
    "dom0's kernel does not overwrite memory that is freed, so traces of"
    " passphrases may stay in it after a pool is locked; add init_on_free=1 to"
    " its command line, see install.md in the package's documentation"
)


def overwritten() -> bool:
    """The last word that the kernel understands counts, else its default."""
    answer: bool | None = None
    for word in WORDS.read_text("utf-8", "replace").split():
        name, _, value = word.replace("-", "_").partition("=")
        if name == "init_on_free":
            if _YES.match(value):
                answer = True
            elif _NO.match(value):
                answer = False
    return _default() if answer is None else answer


def _default() -> bool:
    """As the kernel was built; False if it does not say."""
    try:
        return DEFAULT_ON in gzip.decompress(CONFIG.read_bytes())
    except OSError:
        return False
