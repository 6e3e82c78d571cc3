# SPDX-License-Identifier: BSD-2-Clause
"""What a page of the books consists of, as far as tests care.

A fenced block marked ``sh`` holds command lines.  Each is run, on real ZFS,
unless a comment before it says why not.  Comments for this are invisible to
readers:

    <!-- prepare: COMMAND -->   run here, what the reader has already
    <!-- not run: REASON -->    of the next block
    <!-- refused: TEXT -->      the last line of the next block is refused, so
    <!-- prints: TEXT -->       what the next block prints has this in it
    <!-- input: TEXT -->        on the standard input of the next block

Each can have several lines.  Blocks marked otherwise (``text``) are no
commands, and unmarked ones are an error.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_COMMENT = re.compile(r"<!--\s*([a-z ]+?)(?::\s*|\n)(.*?)-->", re.DOTALL)
_KINDS = ("not run", "refused", "prints", "input")
_LANGUAGES = ("sh", "text", "python", "ini")
_FENCE = "```"


class BadPage(Exception):
    """A page breaks the rules above."""


@dataclass
class Block:
    """Command lines that belong together.

    :ivar place: file and line, for a person
    :ivar marks: what comments say of it, by their kind
    :ivar prepares: the reader does not see these lines
    """

    place: str
    lines: list[str]
    marks: dict[str, str] = field(default_factory=dict)
    prepares: bool = False


def pages() -> list[Path]:
    """Return the README and all books."""
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("doc/**/*.md")),
    ]


def _commands(lines: list[str]) -> list[str]:
    """Lines, with those that end in a backslash joined to the next."""
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        " ".join(line.split())
        for line in text.split("\n")
        if line.strip() and not line.strip().startswith("#")
    ]


def blocks(text: str, name: str) -> list[Block]:
    """All command lines of a page.

    :param text: of the page
    :raises BadPage: if something is not as it must be
    """
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        line, place = lines[number], f"{name}:{number + 1}"
        number += 1
        if line.startswith("<!--"):
            begin = number - 1
            while "-->" not in lines[number - 1]:
                number += 1
            kind, what = _comment("\n".join(lines[begin:number]), place)
            if kind == "prepare":
                commands = _commands(what.split("\n"))
                found.append(Block(place, commands, prepares=True))
            else:
                marks[kind] = what
        elif line.startswith(_FENCE):
            begin = number
            while not lines[number].startswith(_FENCE):
                number += 1
            language = line.removeprefix(_FENCE).strip()
            if language not in _LANGUAGES:
                raise BadPage(f"{place}: a block of {language or 'what'}?")
            if language == "sh":
                commands = _commands(lines[begin:number])
                found.append(Block(place, commands, marks))
            elif marks:
                raise BadPage(f"{place}: {' '.join(marks)} of no command")
            marks = {}
            number += 1
        elif line.startswith("    ") and not _in_list(lines, number - 1):
            raise BadPage(f"{place}: a block without a mark")
        elif line.strip() and marks:
            raise BadPage(f"{place}: {' '.join(marks)} of no command")
    return found


def _comment(text: str, place: str) -> tuple[str, str]:
    match = _COMMENT.fullmatch(text.strip())
    kind, what = match.groups() if match else ("", "")
    if kind not in (*_KINDS, "prepare") or not what.strip():
        raise BadPage(f"{place}: what does this comment say?")
    return kind, what.strip()


def _in_list(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with an item of a list."""
    while number and (lines[number].startswith("  ") or not lines[number]):
        number -= 1
    return bool(re.match(r"([-*]|\d+\.) ", lines[number]))


def headings(text: str) -> set[str]:
    """What a link can lead to within a page, as the field renders it."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in titles
    }


def links(text: str) -> list[str]:
    """Where a page's links lead."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose))
