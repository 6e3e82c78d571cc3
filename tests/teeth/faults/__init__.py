# SPDX-License-Identifier: BSD-2-Clause
r"""Read the deliberate faults; each text file here has one topic.

A fault is a block of lines:

    zfs/answers.py: the passphrase is written to the journal
        tests/zfs/test_no_leaks.py::test_passphrase_and_key_are_not_leaked
    -        end = buffer.index(b"\n")
    +        end = buffer.index(b"\n")
    +        os.write(2, buffer)

The first line has the file, below qubes_storage_zfs or dom0/..., and a plain
statement of the defect. The indented lines are tests; at least one of them must
fail. The lines with - are a text that the file contains exactly once, which may
be a part of a line. The lines with + replace it.
"""

from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Fault:
    """One fault.

    :ivar name: a statement of the defect
    :ivar file: below ``qubes_storage_zfs``, or ``dom0/...`` from the top
    :ivar right: text that the file contains exactly once
    :ivar wrong: the text that replaces it
    :ivar tests: arguments of pytest; at least one test must fail
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


def parse(block: str) -> Fault:
    """Return the fault that a block of lines describes."""
    heading, *lines = block.splitlines()
    file, _, name = heading.partition(": ")
    parts: dict[str, list[str]] = {" ": [], "-": [], "+": []}
    for line in lines:
        parts[line[0]].append(line[1:])
    return Fault(
        name,
        file,
        "\n".join(parts["-"]),
        "\n".join(parts["+"]),
        tuple(test.strip() for test in parts[" "]),
    )


FAULTS: tuple[Fault, ...] = tuple(
    parse(block)
    for topic in sorted(Path(__file__).parent.glob("*.txt"))
    for block in topic.read_text("utf-8").strip().split("\n\n")[1:]
)
