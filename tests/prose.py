# SPDX-License-Identifier: BSD-2-Clause
"""Check the language of pages, docstrings, comments and messages.

    python -m tests.prose [--report] [FILE]...

Print a line for each finding; with ``--report``, a table of the files instead.
Without files, check the places that ``tests/prose.toml`` lists, and the share of
long sentences in them. That file has the rules, too; CONTRIBUTING.md explains
them under "Language".

A line that has to break a rule, such as a quotation, carries the mark
``prose: REASON`` in a comment. The mark of a docstring is on its last line.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from doc.plain import plain

ROOT = Path(__file__).resolve().parents[1]
RULES = Path(__file__).with_suffix(".toml")

#: what a piece of code or markup becomes, so that it counts as one word
CODE = "X"
_MARK = re.compile(r"\bprose: \w")
_WORD = re.compile(r"\S*\w\S*")
_END = re.compile(
    r"(?<![.(\s]\w[.])(?<!e[.]g[.])(?<!i[.]e[.])(?<!etc[.])(?<!vs[.])"
    r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[{]*[A-Z0-9])"
)
_BULLET = re.compile(r"(?:[-*+•]|\d+[.)]|:[a-z]+(?: [^:]*)?:)(?:\s+|$)")
#: columns of a list that are aligned by spaces
_COLUMNS = re.compile(r"[^\s.?!] {2,}\S")
_ADORNMENT = re.compile(r"([=\-~^\"*+])\1{2,}$")
#: comments that are not sentences
_DIRECTIVE = re.compile(
    r"!|SPDX-|noqa|type:|fmt:|pylint:|ruff:|mypy:|shellcheck |-\*-|prose: "
)


@dataclass(frozen=True)
class Passage:
    """Some running text of a file.

    :ivar line: its first line
    :ivar text: without markup; has the line breaks of the file
    :ivar heading: a heading or the head of a table: not a sentence
    :ivar message: a text for a user; a semicolon ends a sentence there
    :ivar last: the line that a mark may be on besides the text's own lines
    """

    line: int
    text: str
    heading: bool = False
    message: bool = False
    last: int = 0


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage, with its first and last line."""

    text: str
    first: int
    last: int

    @property
    def words(self) -> int:
        """Count the words; a piece of code is one word."""
        return len(_WORD.findall(self.text))


@dataclass(frozen=True)
class Rules:
    """The content of ``tests/prose.toml``."""

    places: list[str]
    excluded: list[str]
    long: int
    longest: int
    share: float
    words: list[tuple[re.Pattern[str], str]]
    constructions: list[tuple[re.Pattern[str], str]]
    skipped_columns: list[str]


@dataclass
class Result:
    """The findings in a file, or in several.

    :ivar findings: pairs of a line and a text
    """

    sentences: int = 0
    long: int = 0
    too_long: int = 0
    findings: list[tuple[int, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Return the share of long sentences, from 0 to 1."""
        return self.long / self.sentences if self.sentences else 0.0


def load(path: Path = RULES) -> Rules:
    """Read the rules from a file."""
    data = tomllib.loads(path.read_text())
    words = [
        (re.compile(rf"\b(?:{pattern})\b", re.I), why)
        for pattern, why in data["words"].items()
    ]
    constructions = [
        (re.compile(pattern), why)
        for pattern, why in data["constructions"].items()
    ]
    return Rules(
        data["places"],
        data["excluded"],
        data["sentences"]["long"],
        data["sentences"]["longest"],
        data["sentences"]["share"],
        words,
        constructions,
        data["tables"]["skipped_columns"],
    )


def _breaks(match: re.Match[str]) -> str:
    """Replace code by one word, and keep its line breaks."""
    return "\n" * match[0].count("\n") + CODE


def _plain(text: str) -> str:
    """Remove inline markup."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r":[a-z:]+:(?=`)", "", text)
    text = re.sub(r"``.+?``|`[^`]+`_{0,2}", _breaks, text, flags=re.S)
    return re.sub(r"(?<!\w)[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}(?!\w)", "", text)


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Passage]:
    """Divide text at blank lines, list items, fields and changes of indent."""
    part: list[str] = []
    first = indent = 0
    hangs = False

    def flush() -> Iterator[Passage]:
        if part:
            yield Passage(first, _plain("\n".join(part)))
        part.clear()

    for number, line in lines:
        text = line.strip()
        at = len(line) - len(line.lstrip())
        bullet = _BULLET.match(text)
        if not text:
            yield from flush()
            continue
        aligned = bool(_COLUMNS.search(text))
        if bullet or aligned or (part and not hangs and at != indent):
            yield from flush()
        if not part:
            first = number
        part.append(text[bullet.end() :] if bullet else text)
        indent, hangs = at, bool(bullet)
    yield from flush()


def markdown(text: str, skipped_columns: Iterable[str] = ()) -> list[Passage]:
    """Return the passages of a page."""
    passages: list[Passage] = []
    prose: list[tuple[int, str]] = []
    fenced = False
    skipped: set[int] | None = None
    for number, line in enumerate(plain(text, keep_lines=True).split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""
        elif fenced:
            line = ""
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            head = skipped is None
            if skipped is None:
                skipped = {
                    place
                    for place, cell in enumerate(cells)
                    if cell.strip() in skipped_columns
                }
            if not re.fullmatch(r"[\s|:-]*", line):
                passages += [
                    Passage(number, _plain(cell.strip()), heading=head)
                    for place, cell in enumerate(cells)
                    if place not in skipped and cell.strip()
                ]
            line = ""
        else:
            skipped = None
        if line.startswith("#"):
            passages.append(
                Passage(number, _plain(line.lstrip("# ")), heading=True)
            )
            line = ""
        prose.append((number, line.removeprefix("> ")))
    passages += _paragraphs(prose)
    return sorted(passages, key=lambda passage: passage.line)


def restructured(text: str, start: int = 1) -> list[Passage]:
    """Return the passages of a manual page or docstring."""
    passages: list[Passage] = []
    prose: list[tuple[int, str]] = []
    lines = text.split("\n")
    #: the indent of the line before a literal block or of a directive
    outside: int | None = None
    tabular = False
    for number, line in enumerate(lines):
        at = len(line) - len(line.lstrip())
        if outside is not None and line.strip():
            if at > outside:
                prose.append((start + number, ""))
                continue
            outside = None
        if re.fullmatch(r"=+( +=+)+", line.strip()):
            below = "\n".join(lines[number + 1 : number + 2]).strip()
            tabular = bool(below)
            line = ""
        elif tabular or line.lstrip().startswith(("| ", ".. ", ">>> ")):
            outside = at if line.lstrip().startswith(".. ") else None
            line = ""
        elif _ADORNMENT.match(line.strip()):
            line = ""
        elif number + 1 < len(lines) and line.strip():
            below = lines[number + 1].strip()
            if _ADORNMENT.match(below) and len(below) >= len(line.strip()):
                passages.append(
                    Passage(start + number, line.strip(), heading=True)
                )
                line = ""
        if line.rstrip().endswith("::"):
            outside = at
        prose.append((start + number, line))
    passages += _paragraphs(prose)
    return sorted(passages, key=lambda passage: passage.line)


def comments(text: str, sign: str) -> list[Passage]:
    """Return the passages of the comments that fill lines."""
    prose: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        body = line.strip()
        is_comment = body.startswith(sign)
        body = body.lstrip(sign).removeprefix(":").removeprefix(" ")
        directive = _DIRECTIVE.match(body)
        prose.append((number, body if is_comment and not directive else ""))
    return list(_paragraphs(prose))


def _docstrings(tree: ast.Module) -> dict[int, ast.Constant]:
    """Return the docstrings, and texts after attributes, by their identity."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                found[id(node.value)] = node.value
    return found


def _is_message(text: str) -> bool:
    """Tell whether a string is a text for a user."""
    words = text.split()
    lower = [word for word in words if re.fullmatch(r"[a-z]+[,;:]?", word)]
    return len(words) >= 4 and len(lower) >= 3


def _is_string(node: ast.AST) -> TypeGuard[ast.Constant | ast.JoinedStr]:
    """Tell whether a node is a string, with fields to fill in or without."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)


def _string(node: ast.Constant | ast.JoinedStr) -> str:
    """Return the text of a string; what is filled in is one word."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        str(value.value) if isinstance(value, ast.Constant) else CODE
        for value in node.values
    )


def python(text: str) -> list[Passage]:
    """Return the passages of docstrings, comments and messages."""
    tree = ast.parse(text)
    documents = _docstrings(tree)
    passages: list[Passage] = []
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(value) for value in node.values}
        if not _is_string(node):
            continue
        if isinstance(node, ast.Constant) and id(node) in documents:
            passages += [
                Passage(
                    part.line,
                    part.text,
                    part.heading,
                    last=node.end_lineno or 0,
                )
                for part in restructured(str(node.value), node.lineno)
            ]
            continue
        message = _string(node)
        if id(node) not in inner and _is_message(message):
            passages.append(
                Passage(
                    node.lineno,
                    _plain(re.sub(r"\s+", " ", message)),
                    message=True,
                    last=node.end_lineno or 0,
                )
            )
    whole: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        body = token.string.lstrip("#").removeprefix(":").removeprefix(" ")
        if _DIRECTIVE.match(body):
            continue
        number = token.start[0]
        alone = not token.line[: token.start[1]].strip()
        if not alone or (whole and whole[-1][0] != number - 1):
            whole.append((number, ""))
        whole.append((number, body))
        if not alone:
            whole.append((number, ""))
    passages += _paragraphs(whole)
    return sorted(passages, key=lambda passage: passage.line)


def lua(text: str) -> list[Passage]:
    """Return the passages of comments and messages."""
    passages = comments(text, "--")
    for number, line in enumerate(text.split("\n"), 1):
        code = line.partition("--")[0]
        passages += [
            Passage(number, string, message=True)
            for string in re.findall(r'"([^"]*)"', code)
            if _is_message(string)
        ]
    return passages


def passages_of(path: Path, rules: Rules) -> list[Passage]:
    """Return the passages of a file, by its kind."""
    text = path.read_text()
    if path.suffix == ".md":
        return markdown(text, rules.skipped_columns)
    if path.suffix == ".rst":
        return restructured(text)
    if path.suffix == ".lua":
        return lua(text)
    if path.suffix == ".py" or text.startswith("#!/usr/bin/python3"):
        return python(text)
    return comments(text, "#")


def sentences(passage: Passage) -> Iterator[Sentence]:
    """Divide a passage into sentences."""
    start = 0
    line = passage.line
    ends = [match.span() for match in _END.finditer(passage.text)]
    if passage.message:
        ends += [match.span() for match in re.finditer(r"; ", passage.text)]
        ends.sort()
    for end, after in [*ends, (len(passage.text), len(passage.text))]:
        text = passage.text[start:end].strip()
        first = line + passage.text[:start].count("\n")
        if text:
            yield Sentence(text, first, first + text.count("\n"))
        start = after


def check_text(
    passages: Iterable[Passage], rules: Rules, lines: list[str]
) -> Result:
    """Check some passages of one file.

    :param lines: the lines of the file, for the marks
    """
    result = Result()

    def note(first: int, last: int, passage: Passage, text: str) -> bool:
        places = [*range(first, last + 1), passage.last]
        if any(
            0 < place <= len(lines) and _MARK.search(lines[place - 1])
            for place in places
        ):
            return False
        result.findings.append((first, text))
        return True

    for passage in passages:
        for sentence in sentences(passage):
            text = sentence.text.replace("\n", " ")
            # a heading is not a whole sentence
            rest = [] if passage.heading else rules.constructions
            for pattern, why in [*rules.words, *rest]:
                for match in pattern.finditer(text):
                    line = sentence.first
                    line += sentence.text[: match.start()].count("\n")
                    shown = " ".join(match[0].split())[:40]
                    note(line, line, passage, f"{shown!r}: {why}")
            if passage.heading or sentence.words < 3:
                continue
            result.sentences += 1
            if sentence.words > rules.long:
                result.long += 1
            if sentence.words > rules.longest:
                shown = " ".join(sentence.text.split())[:50]
                result.too_long += note(
                    sentence.first,
                    sentence.last,
                    passage,
                    f"{sentence.words} words in one sentence: {shown} ...",
                )
    result.findings.sort()
    return result


def files(rules: Rules) -> list[Path]:
    """Return the files in the places that are checked."""
    found = {
        path
        for place in rules.places
        for path in ROOT.glob(place)
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(found - {ROOT / name for name in rules.excluded})


def _report(results: dict[str, Result], total: Result, rules: Rules) -> None:
    """Print a table of the files, those with most to do first."""
    print(f"sentences  > {rules.long}  share  > {rules.longest}  rules  file")
    rows = [("all", total), *results.items()]
    for name, result in sorted(
        rows,
        key=lambda row: (-len(row[1].findings) - row[1].long, row[0]),
    ):
        print(
            f"{result.sentences:9} {result.long:5} {result.share:6.1%}"
            f" {result.too_long:5}"
            f" {len(result.findings) - result.too_long:6}  {name}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Check the files that are named, or all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    rules = load()
    total = Result()
    results: dict[str, Result] = {}
    for path in options.files or files(rules):
        path = path.resolve()
        name = str(path.relative_to(ROOT))
        lines = path.read_text().split("\n")
        result = check_text(passages_of(path, rules), rules, lines)
        results[name] = result
        total.sentences += result.sentences
        total.long += result.long
        total.too_long += result.too_long
        total.findings += result.findings
    if options.report:
        _report(results, total, rules)
    else:
        for name, result in results.items():
            for line, text in result.findings:
                print(f"{name}:{line}: {text}")
    too_many = not options.files and total.share > rules.share
    if too_many:
        print(
            f"{total.share:.1%} of the sentences have more than {rules.long}"
            f" words; at most {rules.share:.0%} may"
        )
    return 1 if total.findings or too_many else 0


if __name__ == "__main__":
    sys.exit(main())
