# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the installed pages, and of the check of the documentation site."""

import subprocess
import sys

import pytest

from doc.plain import pages, plain
from tests.books import site
from tests.books.page import ROOT

PAGE = """\
# Title

<!-- prepare
zpool create tank /dev/vdb
-->
<!-- prints: r1 -->
```sh
qvm-volume info  # <!-- not a comment -->


qvm-ls
```

Text.<!-- prose: a quotation --> More text.
"""


def test_a_plain_page_has_no_comments():
    assert plain(PAGE) == (
        "# Title\n\n```sh\nqvm-volume info  # <!-- not a comment -->\n\n\n"
        "qvm-ls\n```\n\nText. More text.\n"
    )


def test_a_comment_between_paragraphs_leaves_one_empty_line():
    assert plain("One.\n\n<!-- prepare: ls -->\n\nTwo.\n") == "One.\n\nTwo.\n"


def test_lines_can_keep_their_numbers():
    kept = plain(PAGE, keep_lines=True).split("\n")
    lines = PAGE.split("\n")
    assert len(kept) == len(lines)
    for number, (line, before) in enumerate(zip(kept, lines, strict=True), 1):
        if number in (3, 4, 5, 6):
            assert line == ""
        elif number != 14:
            assert line == before


def test_make_installs_pages_without_comments(tmp_path):
    subprocess.run(
        ["make", "-s", "install-doc", f"DESTDIR={tmp_path}"]
        + [f"PYTHON={sys.executable}"],
        cwd=ROOT,
        check=True,
        umask=0o077,
    )
    folder = tmp_path / "usr/share/doc/qubes-storage-zfs"
    installed = {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file()
    }
    assert installed == {*pages()}
    for path in installed:
        text = (folder / path).read_text()
        assert "<!--" not in text, path
        assert (folder / path).stat().st_mode & 0o777 == 0o644
        assert text.startswith("# ")


GOOD = (
    '<link href="site.css"><h1 id="top">Title</h1>'
    '<a href="#top">a</a> <a href="other.html#there">b</a>'
    '<a href="https://www.qubes-os.org/">c</a>'
)


@pytest.fixture
def folder(tmp_path):
    """Make a small site without problems."""
    (tmp_path / "site.css").touch()
    (tmp_path / "other.html").write_text('<p id="there">text</p>')
    (tmp_path / "index.html").write_text(GOOD)
    assert site.problems(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    "text, problem",
    [
        ('<a href="gone.html">x</a>', "the link gone.html leads to no file"),
        ('<a href="other.html#x">x</a>', "link other.html#x leads to no place"),
        ('<a href="#x">x</a>', "link #x leads to no place"),
        ('<img src="gone.png">', "the link gone.png leads to no file"),
        (
            '<script src="https://cdn.example/x.js"></script>',
            "loads https://cdn",
        ),
        ('<link href="//fonts.example/x.css">', "loads //fonts.example"),
        ("<!-- prepare: ls -->", "a hidden comment is shown"),
        ("<p>&lt;!-- not run: x --&gt;</p>", "a hidden comment is shown"),
    ],
)
def test_each_problem_of_a_site(folder, text, problem):
    (folder / "index.html").write_text(GOOD + text)
    (found,) = site.problems(folder)
    assert found.startswith("index.html: ") and problem in found
