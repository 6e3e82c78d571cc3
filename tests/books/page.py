# SPDX-License-Identifier: BSD-2-Clause
"""Parse a documentation page for the tests.

A fenced block with the language ``sh`` has command lines.  Each one runs on
real ZFS, unless a comment before the block says why not.  The comments for this
are invisible to readers:

    <!-- prepare: COMMAND -->   run COMMAND; a reader has its result already
    <!-- not run: REASON -->    do not run the next block
    <!-- refused: TEXT -->      the last line of the next block must fail and
                                print TEXT
    <!-- prints: TEXT -->       the next block must print TEXT
    <!-- input: TEXT -->        the standard input of the next block

A comment can have several lines.  A block with another language (``text``) has
no commands.  A block without a language is an error.
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
    """A page breaks these rules."""


@dataclass
class Block:
    """Command lines that belong together.

    :ivar place: file and line, for error messages
    :ivar marks: kind of a comment -> its text
    :ivar prepares: whether readers do not see these lines
    """

    place: str
    lines: list[str]
    marks: dict[str, str] = field(default_factory=dict)
    prepares: bool = False


def pages() -> list[Path]:
    """Return the README and all documentation pages."""
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("doc/**/*.md")),
    ]


def _commands(lines: list[str]) -> list[str]:
    """Return command lines; join a line that ends in a backslash."""
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        " ".join(line.split())
        for line in text.split("\n")
        if line.strip() and not line.strip().startswith("#")
    ]


def blocks(text: str, name: str) -> list[Block]:
    """Return the command blocks of a page, in their order.

    :param text: the text of the page
    :param name: the name of the page, for messages
    :raises BadPage: if the page breaks a rule
    """
    result: list[Block] = []
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
            kind, content = _comment("\n".join(lines[begin:number]), place)
            if kind == "prepare":
                commands = _commands(content.split("\n"))
                result.append(Block(place, commands, prepares=True))
            else:
                marks[kind] = content
        elif line.startswith(_FENCE):
            begin = number
            while not lines[number].startswith(_FENCE):
                number += 1
            language = line.removeprefix(_FENCE).strip()
            if language not in _LANGUAGES:
                raise BadPage(
                    f"{place}: the language {language!r} is not used here"
                )
            if language == "sh":
                commands = _commands(lines[begin:number])
                result.append(Block(place, commands, marks))
            elif marks:
                raise BadPage(
                    f"{place}: the mark '{' '.join(marks)}' has no command"
                )
            marks = {}
            number += 1
        elif line.startswith("    ") and not _in_list(lines, number - 1):
            raise BadPage(f"{place}: a block without a language")
        elif line.strip() and marks:
            raise BadPage(
                f"{place}: the mark '{' '.join(marks)}' has no command"
            )
    return result


def _comment(text: str, place: str) -> tuple[str, str]:
    match = _COMMENT.fullmatch(text.strip())
    kind, content = match.groups() if match else ("", "")
    if kind not in (*_KINDS, "prepare") or not content.strip():
        raise BadPage(f"{place}: this comment is no known mark")
    return kind, content.strip()


def _in_list(lines: list[str], number: int) -> bool:
    """Return whether an indented line continues an item of a list."""
    while number and (lines[number].startswith("  ") or not lines[number]):
        number -= 1
    return bool(re.match(r"([-*]|\d+\.) ", lines[number]))


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in titles
    }


def links(text: str) -> list[str]:
    """Return the targets of the links of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose))
