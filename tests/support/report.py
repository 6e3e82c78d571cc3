# SPDX-License-Identifier: BSD-2-Clause
"""Lines for the end of a test run, and the versions that ran."""

from pathlib import Path

import qubes.storage

#: lines to print when all tests have run
said: list[str] = []


def core_admin_version():
    """Return the version of core-admin; None if the stand-in is used."""
    version = Path(qubes.storage.__file__).parents[2] / "version"
    return version.read_text("ascii").strip() if version.exists() else None
