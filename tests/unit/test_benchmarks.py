# SPDX-License-Identifier: BSD-2-Clause
"""The tables of the benchmarks come from the stored measurements alone."""

import json

from benchmarks import table

MEASURED = {
    "machine": {
        "openzfs": "2.9.1-0+x",
        "kernel": "6.0",
        "python": "3.13.0",
        "core-admin": "",
        "clock": "work",
    },
    "operations": {
        "zfs_zvol": {
            "create": {
                "times": [0.01, 0.03, 0.02],
                "forks": [0, 0, 0],
                "txgs": [2, 3, 2],
                "in_calls": [0.01, 0.02, 0.01],
                "calls": ["create", "adopt", "create"],
            }
        },
        "others": {
            "create": {
                "times": [0.05, 0.07, 0.06],
                "forks": [4, 5, 4],
                "txgs": [],
                "in_calls": [0, 0, 0],
                "calls": [],
            }
        },
    },
}


def test_a_table_is_created_from_measurements(tmp_path, monkeypatch):
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text("old\n")
    measured = tmp_path / "bench.json"
    measured.write_text(json.dumps(MEASURED))
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "RESULTS", results)
    monkeypatch.setattr("sys.argv", ["table", str(measured)])
    assert table.main() == 0
    text = page.read_text()
    row = "| create | 20.0 (10.0 to 30.0) | 10.0 |"
    assert f"{row} 2 (2 of 3), 3 (1 of 3) | 0 | adopt, create (2) |" in text
    assert "| create | 60.0 ms, 3 x, 4 or 5 |" in text
    assert "an emulated CPU" in text and "Medians of 3 rounds" in text
    assert "old" not in text and text.startswith(table.HEAD)
    assert "## Operations of a qube (OpenZFS 2.9.1)" in text
    assert (
        json.loads((results / "operations-2.9.1-work.json").read_text())
        == MEASURED
    )


def test_small_times_and_ratios_are_shown_as_bounds():
    assert table.compared(0.03, 60.0, [0]) == "< 0.1 ms, 0"
    assert table.compared(0.3, 60.0, [0]) == "0.3 ms, < 0.01 x, 0"
    assert table.compared(90.0, 60.0, [7, 9]) == "90.0 ms, 1.5 x, 7 or 9"
    assert table.times(417.8) == "420 x"


def test_the_page_matches_the_stored_results(tmp_path, monkeypatch):
    """The page is generated from the results and was not edited."""
    page = tmp_path / "page.md"
    page.write_text(table.PAGE.read_text())
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["table"])
    assert table.main() == 0
    published = table.ROOT / "doc" / "performance-tables.md"
    assert page.read_text() == published.read_text()
