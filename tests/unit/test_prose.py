# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the check of the language."""

import textwrap

import pytest

from tests import prose

RULES = prose.load()


def texts(passages):
    """Return the texts of passages, with their lines."""
    return [
        (passage.line, " ".join(passage.text.split())) for passage in passages
    ]


def findings(text, kind=prose.markdown):
    """Return what the rules say of a text, with its lines."""
    lines = text.split("\n")
    return prose.check_text(kind(text), RULES, lines).findings


def test_a_page_is_divided_into_passages():
    page = textwrap.dedent(
        """\
        # A heading

        Text with `code
        of two lines` and a [link](there.md#x).
        <!-- prepare
        nobody sees this
        -->
        - an item
          of two lines
        - another item

        ```sh
        echo nobody
        ```

        | a | words to avoid |
        |---|---|
        | cell \\| text | nobody |
        """
    )
    passages = prose.markdown(page, ["words to avoid"])
    assert texts(passages) == [
        (1, "A heading"),
        (3, "Text with X and a link."),
        (8, "an item of two lines"),
        (10, "another item"),
        (16, "a"),
        (18, "cell \\| text"),
    ]
    assert [p.line for p in passages if p.heading] == [1, 16]


def test_a_manual_page_is_divided_into_passages():
    page = textwrap.dedent(
        """\
        =====
        title
        =====

        | **synopsis** nobody

        Text of *one*
        paragraph::

           literal nobody

        term
           Definition with ``literal
           text``.

           .. note: nobody

        ==== =======
        name nobody
        ==== =======
        a    nobody
        ==== =======

        :param x: a field
        """
    )
    assert texts(prose.restructured(page)) == [
        (2, "title"),
        (7, "Text of one paragraph::"),
        (12, "term"),
        (13, "Definition with X."),
        (24, "a field"),
    ]


def test_a_module_is_divided_into_passages():
    module = textwrap.dedent(
        '''\
        # SPDX-License-Identifier: BSD-2-Clause
        """Summary.

        Details.
        """

        #: a comment
        #: of two lines
        NAMES = "work/private vm/x"  # a remark
        text = (
            f"the pool {NAMES} is not here;"
            " connect its disk"
        )
        '''
    )
    passages = prose.python(module)
    assert texts(passages) == [
        (2, "Summary."),
        (4, "Details."),
        (7, "a comment of two lines"),
        (9, "a remark"),
        (11, "the pool X is not here; connect its disk"),
    ]
    (message,) = [passage for passage in passages if passage.message]
    assert [sentence.text for sentence in prose.sentences(message)] == [
        "the pool X is not here",
        "connect its disk",
    ]


def test_comments_of_lua_and_shell():
    program = (
        '-- one\n-- two\nlocal x = 1 -- not this\nerror("a pool is not here")\n'
    )
    assert texts(prose.lua(program)) == [
        (1, "one two"),
        (4, "a pool is not here"),
    ]
    columns = (
        "-- qube    string  dataset\n"
        "--                 of it\n"
        "-- x       number  a\n"
    )
    assert texts(prose.lua(columns)) == [
        (1, "qube string dataset"),
        (2, "of it"),
        (3, "x number a"),
    ]
    script = "#!/bin/sh\n# one\necho  # not this\n  # two\n"
    assert texts(prose.comments(script, "#")) == [(2, "one"), (4, "two")]


@pytest.mark.parametrize(
    "text, count",
    [
        ("One. Two", 2),
        ("One (see e.g. Two). Three?", 2),
        ("Version 2.3 of x.y is fine.", 1),
        ('He said "one." Two.', 2),
        ("One: two; three, i.e. Four", 1),
    ],
)
def test_sentences_are_divided(text, count):
    assert len([*prose.sentences(prose.Passage(1, text))]) == count


@pytest.mark.parametrize(
    "text",
    [
        "The verb fails.",
        "The pool is locked anew.",
        "Nobody holds it open.",
        "What replaces the content is built beside it.",
        "The key is asked\nfor at the start.",
        "To list all is dear.",
        "To list all of them is slow.",
        "The pool is no zpool.",
        "It is refused, for there is another pool.",
        "Ready!",
        "A zvol and a file: the former is faster.",
        "word " * 41,
    ],
)
def test_each_rule_finds(text):
    assert findings(text)


@pytest.mark.parametrize(
    "text",
    [
        "What is a zpool?",
        "# What the driver does with all zpools",
        "The former pointer is destroyed.",
        "There is no zpool.",
        "The pool is no longer locked.",
        "To list all, run `zfs list` as root.",
        "The proverb is adverbial.",
        "`nobody` and `verb` are code.",
        "It runs `a != b`.",
        "word " * 40,
    ],
)
def test_what_the_rules_allow(text):
    assert findings(text) == []


def test_a_finding_has_the_line_of_the_word():
    ((line, text),) = findings("One two three\nfour five\nsix anew seven.\n")
    assert line == 3 and text.startswith("'anew': again")


def test_a_mark_with_a_reason_allows_a_line():
    assert not findings("He wrote nobody.<!-- prose: a quotation -->\n")
    assert findings("He wrote nobody.<!-- prose: -->\n")
    assert findings("Nobody.\nNobody.<!-- prose: a quotation -->") == [
        (1, "'Nobody': name the actor: no process, no administrator")
    ]
    marked = '"""Nobody.\n\nNobody.\n"""  # prose: quotations\n'
    assert findings(marked, prose.python) == []


def test_long_sentences_are_counted():
    text = f"{'word ' * 25}.\n\n{'word ' * 26}.\n\n# {'word ' * 50}\n\nno\n"
    result = prose.check_text(prose.markdown(text), RULES, text.split("\n"))
    assert (result.sentences, result.long, result.too_long) == (2, 1, 0)
    assert result.share == 0.5


def test_the_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("Fine.\n")
    assert prose.main([]) == 0 and capsys.readouterr().out == ""
    page.write_text("Done anew.\n")
    assert prose.main([]) == 1
    assert capsys.readouterr().out.startswith("README.md:1: 'anew'")
    page.write_text(f"{'word ' * 26}.\n")
    assert prose.main([]) == 1 and "100.0%" in capsys.readouterr().out
    assert prose.main([str(page)]) == 0
    assert prose.main(["--report"]) == 1
    assert "README.md" in capsys.readouterr().out


def test_every_place_has_files():
    for place in RULES.places:
        assert [*prose.ROOT.glob(place)], place
