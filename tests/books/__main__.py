# SPDX-License-Identifier: BSD-2-Clause
"""Run the commands of documentation pages, as a reader in dom0 would.

    python3 -m tests.books doc/pools.md

dom0's tools are those of the demo; bash runs all other lines.  Run this in the
VM, as root.  At the end, the zpools that a page created are destroyed.
"""

import contextlib
import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import stage

from ..support.prompts import PASSPHRASE
from .page import ROOT, Block, blocks

DISKS = ("/dev/vdb", "/dev/vdc", "/dev/vdd", "/dev/vde")
ANSWERS = "\n".join([PASSPHRASE.decode()] * 3)


class Failed(Exception):
    """A command did not do what its page says."""


class Reader:
    """A user in dom0 who types the commands of a page."""

    def __init__(self, folder: Path) -> None:
        stage.person()
        self.dom0 = stage.Dom0(folder)

    def block(self, block: Block) -> None:
        """Run the lines of a block.

        :raises Failed: if a result is not as the marks say
        """
        marks, printed = block.marks, ""
        for number, line in enumerate(block.lines, 1):
            refused, text = self.line(line, marks.get("input", ANSWERS) + "\n")
            print(text, end="", flush=True)
            printed += text
            last = number == len(block.lines)
            if refused != (last and "refused" in marks):
                raise Failed(f"{block.place}: {line}")
        output = " ".join(printed.split())
        for kind in "refused", "prints":
            if kind in marks and marks[kind] not in output:
                raise Failed(f"{block.place}: {marks[kind]!r} was not printed")

    def line(self, line: str, answers: str) -> tuple[bool, str]:
        """Run a line; return whether it failed, and its output."""
        words = shlex.split(line, comments=True)
        if words[0] == "sudo":
            words.pop(0)
        if not words[0].startswith(("qvm-", "qubes-", "systemctl")):
            return self._shell(line, answers)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            refused = self._tool(words, answers)
        return refused, printed.getvalue()

    def _tool(self, words: list[str], answers: str) -> bool:
        """Run a tool of dom0; return whether it refused."""
        if words == ["systemctl", "restart", "qubesd"]:
            self.dom0.kill_qubesd()
            return False
        if words[0] == "qvm-zfs":
            done = self.dom0.qvm_zfs(shlex.join(words[1:]), answers)
            return bool(done.returncode)
        output = self.dom0(shlex.join(words))
        return isinstance(output, str) and ": error: " in output

    def _shell(self, line: str, answers: str) -> tuple[bool, str]:
        # udev makes links before a user has typed the next line
        subprocess.run(["udevadm", "settle"], check=True)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line.removeprefix("sudo ")],
            input=answers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return bool(done.returncode), f"$ {line}\n{done.stdout}"


def zpools() -> set[str]:
    command = ["zpool", "list", "-H", "-o", "name"]
    return set(
        subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split()
    )


def tidy(before: set[str]) -> None:
    """Destroy what a page created, and make the disks empty again."""
    for zpool in zpools() - before:
        subprocess.run(["zpool", "destroy", "-f", zpool], check=True)
    for opened in Path("/dev/mapper").glob("luks-*"):
        subprocess.run(["cryptsetup", "close", opened.name], check=True)
    for disk in DISKS:
        subprocess.run(["blkdiscard", "-q", "-f", "-z", disk], check=True)


def read(name: str) -> tuple[int, int]:
    """Run a page; return how many command lines ran and were skipped."""
    ran, skipped = 0, 0
    before = zpools()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        reader = Reader(Path(folder))
        try:
            for block in blocks((ROOT / name).read_text("utf-8"), name):
                if why := block.marks.get("not run"):
                    skipped += len(block.lines)
                    print(f"not run ({why}): {'; '.join(block.lines)}")
                    continue
                reader.block(block)
                ran += 0 if block.prepares else len(block.lines)
        finally:
            tidy(before)
    return ran, skipped


def main() -> int:
    for name in sys.argv[1:]:
        try:
            ran, skipped = read(name)
        except Failed as exc:
            print(f"books: {exc}")
            return 1
        print(f"books: {name}: {ran} commands ran, {skipped} did not")
    return 0


if __name__ == "__main__":
    sys.exit(main())
