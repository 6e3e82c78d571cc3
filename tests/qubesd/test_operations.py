# SPDX-License-Identifier: BSD-2-Clause
"""Commands during a stop or an import, and a resize without effect."""

import os
import signal
import time
from pathlib import Path

import pytest

from .dom0 import MIB, datasets, is_alive, machine, read, until, write

SERVICE, WRITER = b"admin.vm.volume.ImportWithSize", b"dd bs=128K of=/dev/"
CREATE = ("qvm-create", "-P", "plain", "-l", "red")


@pytest.fixture(scope="module")
def qube(dom0, plain):
    dom0.run(*CREATE, "-t", "tmpl", "soon")
    for content in (b"one", b"two"):
        session(dom0, "soon", content)
        dom0.shutdown("soon")
    yield "soon"
    dom0.run("qvm-remove", "-f", "soon")


def session(dom0, qube, content):
    """Start a qube and let it write."""
    dom0.run("qvm-start", qube)
    write(qube, "xvdb", content.ljust(16))


def end_domain(qube):
    """End the domain of a qube; qubesd notices this a moment later."""
    pid = machine(qube)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), f"{qube} has ended")


def content(dom0, qube):
    dom0.run("qvm-start", qube)
    data = read(qube, "xvdb", 16).rstrip(b" \0")
    dom0.run("qvm-kill", qube)
    return data


def test_a_revert_works_directly_after_a_shutdown(dom0, qube):
    session(dom0, qube, b"three")
    dom0.shutdown(qube)
    dom0.run("qvm-volume", "revert", f"{qube}:private")
    assert content(dom0, qube) == b"two"


@pytest.mark.parametrize("wait", [True, False])
def test_operations_read_the_session_that_has_just_ended(dom0, qube, wait):
    """Clone and revert directly after the end of a session."""
    last = b"waited for" if wait else b"just ended"
    before = dom0.revisions(f"{qube}:private")
    session(dom0, qube, last)
    if wait:
        dom0.shutdown(qube)
    else:
        end_domain(qube)
    dom0.run("qvm-clone", "-P", "plain", qube, "soon-copy")
    assert dom0.revisions(f"{qube}:private")[-1] not in before
    assert content(dom0, "soon-copy") == last
    session(dom0, "soon-copy", b"goes")
    end_domain("soon-copy")
    dom0.run("qvm-remove", "-f", "soon-copy")
    assert not any("/soon-copy" in name for name in datasets("tank"))
    session(dom0, qube, b"before it")
    end_domain(qube)
    dom0.import_file(f"{qube}:private", b"imported")
    dom0.run("qvm-volume", "revert", f"{qube}:private")
    assert content(dom0, qube) == b"before it"


def test_a_revert_refuses_a_running_qube_at_once(dom0, qube):
    session(dom0, qube, b"runs")
    start = time.monotonic()
    dom0.run(
        *("qvm-volume", "revert", f"{qube}:private"),
        status=1,
        says="the qube is running; shut it down first",
    )
    assert time.monotonic() - start < 15
    dom0.run("qvm-kill", qube)


def test_a_halted_disposable_refuses_a_resize_without_effect(dom0, qube):
    dom0.run("qvm-prefs", qube, "template_for_dispvms", "True")
    dom0.run(*CREATE, "-C", "DispVM", "-t", qube, "disp8")
    resize = ("qvm-volume", "resize")
    size = ("qvm-volume", "info", "disp8:private", "size")
    for volume, source in (("private", qube), ("root", "tmpl")):
        dom0.run(
            *(*resize, f"disp8:{volume}", "128MiB"),
            status=1,
            says=f"run 'qvm-volume resize {source}:{volume} SIZE'",
        )
    dom0.run(*resize, "disp8:volatile", "12GiB")
    dom0.run("qvm-start", "disp8")
    dom0.run(*resize, "disp8:private", "128MiB")
    assert dom0.run(*size) == f"{128 * MIB}\n"
    assert read("disp8", "xvdb", 16, 128 * MIB - 16) == bytes(16)
    assert len(read("disp8", "xvdc", 16, (12 << 30) - 16)) == 16
    dom0.run("qvm-kill", "disp8")
    assert dom0.run(*size) == f"{64 * MIB}\n"
    dom0.run(*resize, f"{qube}:private", "128MiB")
    assert dom0.run(*size) == f"{128 * MIB}\n"
    dom0.run("qvm-start", "disp8")
    assert len(read("disp8", "xvdb", 16, 128 * MIB - 16)) == 16
    dom0.run("qvm-kill", "disp8")
    dom0.run("qvm-remove", "-f", "disp8")


# --- abandoned imports


def start_import(dom0, qube):
    """Start a client that sends a part of its data; return it and its pipe."""
    call, ours = dom0.start_import(f"{qube}:private")
    until(lambda: processes_with(WRITER), "dd writes")
    return call, ours


def processes_with(word):
    """Return the processes with *word* in their command line."""
    pids = []
    for folder in Path("/proc").glob("[1-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word in line.replace(b"\0", b" "):
            pids.append(int(folder.name))
    return pids


def kill_import(call, ours):
    """Kill the client, and then the service before it reports a failed dd."""
    call.kill()
    for word in (SERVICE, WRITER):
        for pid in processes_with(word):
            os.kill(pid, signal.SIGKILL)
    os.close(ours)
    call.end()
    until(lambda: not processes_with(WRITER), "dd has ended")


def test_commands_work_after_an_abandoned_import(dom0, qube):
    session(dom0, qube, b"stays")
    dom0.shutdown(qube)
    volume = f"{qube}:private"
    kill_import(*start_import(dom0, qube))
    dom0.run("qvm-volume", "clear", "-f", volume)
    assert content(dom0, qube) == b""
    kill_import(*start_import(dom0, qube))
    dom0.run("qvm-volume", "revert", volume)
    assert content(dom0, qube) == b"stays"


def test_commands_are_refused_during_an_import(dom0, qube):
    volume = f"{qube}:private"
    call, ours = start_import(dom0, qube)
    for command in (
        ("qvm-volume", "clear", "-f", volume),
        ("qvm-volume", "revert", volume),
        ("qvm-start", qube),
    ):
        dom0.run(
            *command,
            status=1,
            says=("import into this volume is running", "(dd)"),
        )
    kill_import(call, ours)
    dom0.run("qvm-start", qube)
    dom0.run("qvm-kill", qube)
