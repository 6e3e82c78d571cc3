# SPDX-License-Identifier: BSD-2-Clause
"""Code that all benchmarks share: disks, the machine, the command line."""

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
#: the empty disks of the guest
DISKS = [f"/dev/vd{letter}" for letter in "bcdefghijk"]
WRITTEN = MIB


def write(path: str) -> None:
    """Write as a qube does, and flush as Xen does when the qube ends."""
    with open(path, "r+b") as file:
        file.write(os.urandom(WRITTEN))
        os.fsync(file)


def parser(
    about: str | None, out: str, **numbers: int
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's command line.

    :param about: docstring of the benchmark
    :param out: default name of the results
    :param numbers: options with a number -> their defaults
    """
    result = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    for name, default in numbers.items():
        result.add_argument(f"--{name}", type=int, default=default)
    result.add_argument("--clock", default="wall", choices=["wall", "work"])
    result.add_argument("--out", default=f"/out/{out}.json")
    return result


def set_state_folder() -> None:
    """Set the folder of the state files of running volumes, as qubesd does."""
    qubes.storage.VOLUME_STATE_DIR = "/run/qubes/storage"


def save(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write the results to the file that the command line names."""
    machine = {
        "openzfs": lzc.module_version(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "core-admin": core_admin_version(),
        "clock": options.clock,
    }
    text = json.dumps({"machine": machine, **results}, indent=1)
    Path(options.out).write_text(text + "\n", "ascii")
