# SPDX-License-Identifier: BSD-2-Clause
"""Copy the pages without their hidden comments, which only tests read.

    python3 doc/plain.py FOLDER

The packages install these copies, and the documentation site is built from
them. ``tests/books/page.py`` explains the comments. This file needs nothing but
Python, so that the packages need no other tool to be built.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCED = re.compile(r"(^```.*?^```[^\n]*\n?)", re.DOTALL | re.MULTILINE)
_WHOLE_LINES = re.compile(r"^<!--.*?-->[ \t]*\n?", re.DOTALL | re.MULTILINE)
_IN_LINE = re.compile(r"[ \t]*<!--.*?-->", re.DOTALL)


def pages(root: Path = ROOT) -> Iterator[Path]:
    """Yield the paths of all pages in Markdown, relative to the repository."""
    for pattern in "*.md", "doc/**/*.md":
        yield from sorted(path.relative_to(root) for path in root.glob(pattern))


def plain(text: str, keep_lines: bool = False) -> str:
    """Return a page without comments; code blocks are not changed.

    :param keep_lines: put empty lines in place of comments, so that the number
        of a line stays correct in error messages
    """

    def breaks(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n") if keep_lines else ""

    parts = _FENCED.split(text)
    for number in range(0, len(parts), 2):
        part = _WHOLE_LINES.sub(breaks, parts[number])
        parts[number] = _IN_LINE.sub(breaks, part)
    text = "".join(parts)
    if keep_lines:
        return text
    # a comment may have been the only text between two empty lines
    parts = _FENCED.split(text)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"\n{3,}", "\n\n", parts[number])
    return "".join(parts)


def copy(folder: Path) -> None:
    """Write the pages below a folder, under the same paths."""
    for page in pages():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(plain((ROOT / page).read_text()))


if __name__ == "__main__":
    copy(Path(sys.argv[1]))
