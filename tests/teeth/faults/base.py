"""One deliberate fault, and helpers to write it down."""

from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent.parent
LUA = "zfs/programs/"


@dataclass(frozen=True)
class Fault:
    """One fault.

    :ivar name: what it breaks
    :ivar file: below ``qubes_storage_zfs``, or ``dom0/...`` from the top
    :ivar right: text that is in the file exactly once
    :ivar wrong: the text that replaces it
    :ivar tests: given to pytest; at least one of them must fail
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]

    def place(self, tree: Path = TREE) -> Path:
        """Return the file in the checkout *tree*."""
        if self.file.startswith("dom0/"):
            return tree / self.file
        return tree / "qubes_storage_zfs" / self.file


def zfs_tests(file: str, *names: str) -> tuple[str, ...]:
    """Return the node ids of tests in ``tests/zfs/test_<file>.py``."""
    return tuple(f"tests/zfs/test_{file}.py::test_{name}" for name in names)
