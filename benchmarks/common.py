# SPDX-License-Identifier: BSD-2-Clause
"""What all benchmarks have in common: disks, a machine, a command line."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import qubes.storage

from qubes_storage_zfs.zfs import lzc
from tests.support.report import core_admin_version

MIB = 1 << 20
#: the guest's, all empty
DISKS = [f"/dev/vd{letter}" for letter in "bcdefghijk"]
WRITTEN = MIB


def write(path: str) -> None:
    """What a qube does, and what Xen does when it ends."""
    with open(path, "r+b") as file:
        file.write(os.urandom(WRITTEN))
        os.fsync(file)


def parser(
    about: str | None, out: str, **numbers: int
) -> argparse.ArgumentParser:
    """Of a benchmark's command line.

    :param about: its docstring
    :param out: the file that it writes by default
    :param numbers: its options that are numbers, with their defaults
    """
    made = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    for name, default in numbers.items():
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--clock", default="wall", choices=["wall", "work"])
    made.add_argument("--out", default=f"/out/{out}.json")
    return made


def begin() -> None:
    """As qubesd does: where running volumes are marked."""
    qubes.storage.VOLUME_STATE_DIR = "/run/qubes/storage"


def save(given: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found to where the command line says."""
    machine = {
        "openzfs": lzc.module_version(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "core-admin": core_admin_version(),
        "clock": given.clock,
    }
    text = json.dumps({"machine": machine, **found}, indent=1)
    Path(given.out).write_text(text + "\n", "ascii")
