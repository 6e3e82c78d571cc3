# SPDX-License-Identifier: BSD-2-Clause
"""qubesd stops or is killed while qubes run."""

import os
import re
import signal
import time

import pytest

from .dom0 import MIB, ROOT, datasets, machine, read, record, until, write


@pytest.fixture(scope="module", params=["plain"])
def qube(dom0, request):
    """Create an app qube that wrote in one session."""
    pool = request.getfixturevalue(request.param)
    name = f"stays-{pool}"
    dom0.run("qvm-create", "-P", pool, "-l", "red", "-t", "tmpl", name)
    dom0.session(name, b"one")
    assert dom0.revisions(f"{name}:private") == ["r1"]
    yield name
    dom0.run("qvm-remove", "-f", name)
    assert not any(f"/{name}" in dataset for dataset in datasets("tank"))


def state(dom0, qube):
    return dom0.run("qvm-ls", "--fields=STATE", qube).split()[-1]


def is_running(dom0, qube):
    return state(dom0, qube) == "Running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_qube_survives_the_end_of_qubesd(dom0, qube, number):
    before = dom0.revisions(f"{qube}:private")
    dom0.run("qvm-start", qube)
    write(qube, "xvda", b"scribbled")
    write(qube, "xvdb", number.name.encode())
    dom0.stop(number)
    write(qube, "xvdb", b"unwatched", MIB)
    dom0.start()
    assert is_running(dom0, qube)
    assert read(qube, "xvdb", 9, MIB) == b"unwatched"
    dom0.run("qvm-volume", "revert", f"{qube}:private", status=1)
    dom0.shutdown(qube)
    after = dom0.revisions(f"{qube}:private")
    assert after[:-1] == before[-1:] or after[:-1] == before
    assert int(after[-1][1:]) == int(before[-1][1:]) + 1
    dom0.run("qvm-start", qube)
    assert read(qube, "xvda", len(ROOT)) == ROOT
    assert read(qube, "xvdb", 7) == number.name.encode()
    dom0.shutdown(qube)
    dom0.lists(f"{qube}:private", after)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_ends_without_qubesd_is_committed(dom0, qube, number):
    before = dom0.revisions(f"{qube}:private")
    dom0.run("qvm-start", qube)
    write(qube, "xvda", b"scribbled")
    write(qube, "xvdb", b"at its end")
    dom0.stop(number)
    os.kill(machine(qube)["pid"], signal.SIGTERM)
    dom0.start()
    assert not is_running(dom0, qube)
    after = dom0.revisions(f"{qube}:private")
    assert int(after[-1][1:]) == int(before[-1][1:]) + 1
    dom0.run("qvm-start", qube)
    assert read(qube, "xvda", len(ROOT)) == ROOT
    assert read(qube, "xvdb", 10) == b"at its end"
    dom0.shutdown(qube)
    dom0.lists(f"{qube}:private", after)


def test_a_killed_import_changes_nothing(dom0, qube):
    """The volume stays what it was, and takes the next."""
    dom0.new_log()
    dom0.session(qube, b"stays")
    # in R4.3 the command can end before the stop does
    committed = f"{qube}:private in pool"
    until(
        lambda: re.search(f"{committed} .*: stop committed", dom0.new_log()),
        "the session is committed",
    )
    before = datasets("tank")
    revisions = dom0.revisions(f"{qube}:private")
    call, ours = dom0.start_import(f"{qube}:private")
    dom0.stop(signal.SIGKILL)
    os.close(ours)
    assert call.end()[0]
    dom0.start()
    assert dom0.revisions(f"{qube}:private") == revisions
    dom0.run("qvm-start", qube)
    assert read(qube, "xvdb", 5) == b"stays"
    dom0.shutdown(qube)
    until(lambda: datasets("tank") == before, "garbage of the import is gone")
    dom0.import_file(f"{qube}:private", b"imported".ljust(4 * MIB, b"\0"))
    dom0.run("qvm-start", qube)
    assert read(qube, "xvdb", 8) == b"imported"
    dom0.shutdown(qube)


def test_a_qube_starts_after_qubesd_died_in_a_start(dom0, qube):
    for seconds in (0, 0.2, 0.5):
        dom0.new_log()
        call = dom0.begin("qvm-start", qube)
        until(lambda: "Starting qube" in dom0.new_log(), "the start has begun")
        time.sleep(seconds)
        dom0.stop(signal.SIGKILL)
        call.end()
        record(f"-- killed {seconds} s after the start began")
        dom0.start()
        # a qube stays paused if qubesd was killed before it resumed the qube
        state_now = state(dom0, qube)
        if state_now == "Paused":
            dom0.run("qvm-kill", qube)
        if state_now != "Running":
            dom0.run("qvm-start", qube)
        assert read(qube, "xvda", len(ROOT)) == ROOT
        assert read(qube, "xvdb", 8) == b"imported"
        dom0.run("qvm-kill", qube)
