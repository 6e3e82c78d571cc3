# SPDX-License-Identifier: BSD-2-Clause
"""Run the commands of the documentation pages."""

import subprocess
import sys

import pytest

from ..books.page import ROOT, blocks, pages
from ..support.report import said
from ..support.zpools import clear

pytestmark = pytest.mark.side_a

names = [
    str(path.relative_to(ROOT))
    for path in pages()
    if blocks(path.read_text("utf-8"), path.name)
]


@pytest.mark.parametrize("name", names)
def test_commands_of_a_page_run(name):
    clear()
    done = subprocess.run(
        [sys.executable, "-m", "tests.books", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    said.append(done.stdout.strip().split("\n")[-1])
