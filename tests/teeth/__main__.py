# SPDX-License-Identifier: BSD-2-Clause
"""Put each fault into a copy of the tree and run the tests for it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..support.zpools import attempt
from .faults import FAULTS, TREE, Fault

FAILED = 1  # pytest's exit status if tests ran and some failed
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]


def faulty(fault: Fault, copy: Path) -> None:
    """Put *fault* into a copy of the package."""
    file = fault.place(copy)
    text = file.read_text("utf-8")
    if text.count(fault.right) != 1:
        raise SystemExit(f"the code for the fault {fault.name!r} was not found")
    file.write_text(text.replace(fault.right, fault.wrong), "utf-8")


def tests_of(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run pytest; return its status and the last line of its output."""
    done = subprocess.run(
        [*PYTEST, *tests],
        cwd=tree,
        capture_output=True,
        text=True,
        # a test of odd names prints bytes that are not UTF-8
        errors="replace",
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else done.stderr[-200:]


def is_noticed(status: int, line: str) -> bool:
    """Return whether a test failed.

    An error before or after a test does not count, because something that an
    earlier fault left may cause it.
    """
    return status == FAILED and " failed" in line


def clear() -> None:
    """Destroy the zpools that the tests of a fault left."""
    if shutil.which("zpool") is None:
        return
    for zpool in attempt("zpool", "list", "-Ho", "name").stdout.split():
        attempt("timeout", "60", "zpool", "destroy", "-f", zpool)


def main() -> int:
    words = sys.argv[1:]
    faults = [
        fault
        for fault in FAULTS
        if not words or any(word in fault.name for word in words)
    ]
    all_tests = sorted({test for fault in faults for test in fault.tests})
    status, line = tests_of(TREE, all_tests)
    print(f"without a fault: {line}", flush=True)
    if status:
        return 1
    killed = 0
    for fault in faults:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "tree"
            shutil.copytree(TREE, copy)
            faulty(fault, copy)
            status, line = tests_of(copy, list(fault.tests))
        clear()
        noticed = is_noticed(status, line)
        killed += noticed
        verdict = "noticed" if noticed else "NOT NOTICED"
        print(f"{verdict}: {fault.name}: {line}", flush=True)
    print(f"faults noticed: {killed} of {len(faults)}")
    return 0 if killed == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
