# SPDX-License-Identifier: BSD-2-Clause
"""The documentation: links resolve, and command blocks have a mark."""

import pytest

from tests.books.page import (
    ROOT,
    BadPage,
    blocks,
    headings,
    links,
    pages,
)

names = [str(path.relative_to(ROOT)) for path in pages()]


@pytest.mark.parametrize("name", names)
def test_links_resolve(name):
    for link in links((ROOT / name).read_text()):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text()), link


def linked_from(page):
    return {(page.parent / link).resolve() for link in links(page.read_text())}


def test_every_page_is_linked_from_the_readme():
    """A decision is linked from doc/design.md, which lists all of them."""
    linked = linked_from(ROOT / "README.md")
    decisions = linked_from(ROOT / "doc/design.md")
    manual = ROOT.glob("doc/**/*.rst")
    for path in [*ROOT.glob("doc/**/*.md"), *manual]:
        expected = decisions if path.parent.name == "decisions" else linked
        assert path.resolve() in expected, path


def test_decisions_are_numbered_and_listed_in_order():
    paths = sorted(ROOT.glob("doc/decisions/*"))
    listed = [
        link.removeprefix("decisions/")
        for link in links((ROOT / "doc/design.md").read_text())
        if link.startswith("decisions/") and "#" not in link
    ]
    assert listed == [path.name for path in paths]
    for number, path in enumerate(paths, 1):
        title, *lines = path.read_text().splitlines()
        assert path.name.startswith(f"{number:04}-")
        assert title.startswith(f"# {number:04}: ")
        parts = [line for line in lines if line.startswith("#")]
        assert parts == ["## Context", "## Decision", "## Consequences"]


@pytest.mark.parametrize("name", names)
def test_every_command_block_has_a_mark(name):
    for block in blocks((ROOT / name).read_text(), name):
        assert block.lines, block.place


#: commands of ZFS that a user of dom0 may run without root
READS = {
    "zfs": {"get", "list", "version"},
    "zpool": {"get", "list", "status", "version"},
}
ROOT_ONLY = {"blkdiscard", "cryptsetup", "dnf", "dracut", "modprobe"}


@pytest.mark.parametrize("name", names)
def test_commands_that_need_root_use_sudo(name):
    for block in blocks((ROOT / name).read_text(), name):
        for line in block.lines:
            if not block.prepares:
                for command in line.split(" | "):
                    tool, *words = command.split()
                    reads = READS.get(tool, {words[0]} if words else set())
                    assert words == [] or words[0] in reads, line
                    assert tool not in ROOT_ONLY, line


@pytest.mark.parametrize(
    "text, reason",
    [
        ("```\nls\n```", "the language '' is not used"),
        ("    zfs list\n", "without a language"),
        ("<!-- not run: no disk -->\ntext", "has no command"),
        ("<!-- not run: no disk -->\n```text\nx\n```", "has no command"),
        ("<!-- not run: -->\n```sh\nls\n```", "is no known mark"),
        ("<!-- maybe: x -->\n```sh\nls\n```", "is no known mark"),
    ],
)
def test_an_invalid_page_is_refused(text, reason):
    with pytest.raises(BadPage, match=reason):
        blocks(text, "page")


def test_a_page_is_parsed():
    text = (
        "# Title, one\n\n<!-- prepare\nmkdir x\ntouch y\n-->\n"
        "- item\n\n    more of it\n\n<!-- not run: asks -->\n"
        "```sh\nzfs list \\\n    tank   # comment\n# remark\n```\n"
        "See [there](#title-one) and `[not](this)`.\n"
    )
    first, second = blocks(text, "page")
    assert first.prepares and first.lines == ["mkdir x", "touch y"]
    assert second.lines == ["zfs list tank # comment"]
    assert second.marks == {"not run": "asks"} and not second.prepares
    assert second.place == "page:12"
    assert links(text) == ["#title-one"] and headings(text) == {"title-one"}
