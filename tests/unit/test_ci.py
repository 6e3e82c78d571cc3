# SPDX-License-Identifier: BSD-2-Clause
"""The targets that .ci/run makes, recorded by a stand-in for make."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTE = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >"$NOTES/$$.new"
printf '%s\\n' "$ZFS_SUITE" >>"$NOTES/$$.new"
mv "$NOTES/$$.new" "$NOTES/$$"
case " $LASTING " in *" $1 "*) exec sleep 600 ;; esac
[ "$1" != "$FAILING" ]
"""


@pytest.fixture
def notes(tmp_path):
    program = tmp_path / "bin" / "make"
    program.parent.mkdir()
    program.write_text(NOTE)
    program.chmod(0o755)
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def ci(notes, **variables):
    """Start .ci/run with the stand-in for make."""
    environment = {
        **os.environ,
        "PATH": f"{notes.parent / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "TMPDIR": str(notes.parent),
        **variables,
    }
    return subprocess.Popen(
        [ROOT / ".ci/run"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def calls_of_make(notes):
    """Return (version of OpenZFS, arguments) of each call of make."""
    calls = []
    for note in notes.glob("*[0-9]"):
        *words, suite = note.read_text().split("\n")[:-1]
        calls.append((suite, words))
    return calls


def collected(*arguments):
    """Return the tests on ZFS that pytest selects with *arguments*."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *("--collect-only", "-q", "tests/zfs", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line for line in done.stdout.split("\n") if "::" in line}


def test_each_test_on_zfs_runs_on_at_least_one_version(notes):
    assert ci(notes).wait(60) == 0
    selected = {}
    for suite, words in calls_of_make(notes):
        if words[0] in ("test", "zfs-test"):
            (arguments,) = words[1:]
            assert suite not in selected
            selected[suite] = collected(
                *shlex.split(arguments.removeprefix("ARGS="))
            )
    whole = collected()
    assert set(selected) == {"2.3", "2.4"}
    assert whole == selected["2.3"] | selected["2.4"]
    # most of the quick tests run on both
    assert len(selected["2.3"] & selected["2.4"]) > len(whole) / 4


def test_each_target_runs_once(notes):
    assert ci(notes).wait(60) == 0
    counted = Counter(words[0] for _suite, words in calls_of_make(notes))
    assert counted == dict.fromkeys(
        (
            *("prepare-ci", "test-rpm", "test", "zfs-test", "test-power"),
            *("test-crash", "bench-smoke", "demo"),
        ),
        1,
    )


@pytest.mark.parametrize(
    "target", ["test-rpm", "test-crash", "zfs-test", "demo"]
)
def test_a_failed_target_fails_the_run_but_stops_no_other(notes, target):
    run = ci(notes, FAILING=target)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 1
    assert f" {target}\n" in output[output.index("--- failed: ") :]
    assert len(calls_of_make(notes)) == 8


@pytest.mark.parametrize(
    "ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda ending: ending.name
)
def test_the_children_end_with_the_run(notes, ending):
    run = ci(notes, LASTING="zfs-test test")
    deadline = time.monotonic() + 20
    tests = {"test", "zfs-test"}
    while not tests <= {words[0] for _suite, words in calls_of_make(notes)}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(ending)
    # EOF comes when all children have closed their output
    assert "demo" not in run.communicate(timeout=20)[0]
    assert run.returncode == -ending
