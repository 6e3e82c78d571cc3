# SPDX-License-Identifier: BSD-2-Clause
"""Check that no generation is kept for one clone alone."""

from collections.abc import Mapping
from typing import Any

from .gate import Dump, Violated


def check_needed(
    dump: Dump, qubes_root: str, pointers: Mapping[str, Any]
) -> None:
    """Check each generation that is not current.

    :param pointers: vid -> value of the volume's pointer; None: no such volume
    :raises Violated: if a generation has one clone, which could be promoted
    """
    zvols = {
        f"{qubes_root}/{vid}": pointer
        for vid, pointer in pointers.items()
        if pointer
    }
    for name, item in dump.items():
        first, _, number = name.partition(".")
        if first.removeprefix(f"{qubes_root}/") not in pointers:
            continue
        if first in zvols and zvols[first].split()[0] == (number or "0"):
            continue
        clones = [
            clone
            for clone, entry in dump.items()
            if (entry.get("origin") or "").startswith(f"{name}@")
        ]
        leaving = [entry["leaving"] for entry in item["snapshots"].values()]
        if leaving == [True] and len(clones) == 1:
            if clones[0].partition(".")[0] in zvols:
                raise Violated(f"{name} is kept for {clones[0]} alone")
