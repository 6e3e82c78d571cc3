# SPDX-License-Identifier: BSD-2-Clause
"""The life of qubes in a pool, as a user at the terminal sees it."""

import hashlib
import os

import pytest

from .dom0 import MIB, ROOT, datasets, read, write, zfs

CREATE = ("qvm-create", "-P", "plain", "-l", "red")
NOISE = os.urandom(3 * MIB + 517)


@pytest.fixture(scope="module")
def work(dom0, plain):
    """Create an app qube."""
    dom0.run(*CREATE, "-t", "tmpl", "work")
    return "work"


@pytest.fixture
def halted(dom0, work):
    """Return the app qube, and kill it after the test."""
    yield work
    dom0.run("qvm-kill", work)


def test_each_class_of_qube_is_created_in_the_chosen_pool(dom0, work):
    dom0.run(*CREATE, "-C", "StandaloneVM", "solo")
    dom0.run("qvm-prefs", "work", "template_for_dispvms", "True")
    dom0.run(*CREATE, "-C", "DispVM", "-t", "work", "disp")
    listed = dom0.run("qvm-volume", "list", "-p", "plain").splitlines()
    of = {tuple(line.split()[1:3]) for line in listed}
    for qube in ("tmpl", "work", "solo", "disp"):
        for volume in ("root", "private", "volatile"):
            assert (qube, volume) in of
    assert "tank/plain/vm/solo/root" in datasets("tank/plain")
    assert zfs(
        "zfs", "get", "-Hpo", "value", "volsize", "tank/plain/vm/solo/root"
    ) == [str(96 * MIB)]


def test_one_volume_can_be_in_another_pool(dom0, work):
    create = ("qvm-create", "-l", "red", "-t", "tmpl")
    dom0.run(*create, "--pool", "private=plain", "part")
    pool = ("qvm-volume", "info", "part:private", "pool")
    assert dom0.run(*pool) == "plain\n"
    dom0.run("qvm-start", "part")
    assert read("part", "xvda", len(ROOT)) == ROOT
    dom0.shutdown("part")
    dom0.run("qvm-remove", "-f", "part")
    # core-admin-client accepts one of the two, and refuses with a traceback
    dom0.run(
        *(*CREATE, "-t", "tmpl", "--pool", "private=plain", "part"),
        status=1,
        says="only one of pool= and pools= can be used",
        traced=True,
    )


def test_a_session_commits_only_kept_volumes(dom0, work):
    assert dom0.revisions("work:private") == []
    dom0.run("qvm-start", "work")
    assert read("work", "xvda", len(ROOT)) == ROOT
    assert read("work", "xvdb", 64 * MIB) == bytes(64 * MIB)
    write("work", "xvda", b"scribbled", 100)
    write("work", "xvdb", b"first session")
    write("work", "xvdc", b"swapped")
    dom0.shutdown("work")
    assert dom0.revisions("work:private") == ["r1"]

    dom0.run("qvm-start", "work")
    assert read("work", "xvda", 128) == ROOT.ljust(128, b"\0")
    assert read("work", "xvdb", 13) == b"first session"
    assert read("work", "xvdc", 7) == bytes(7)
    write("work", "xvdb", b"second")
    dom0.run("qvm-kill", "work")
    assert dom0.revisions("work:private") == ["r1", "r2"]

    # a session without a write makes no revision
    dom0.run("qvm-start", "work")
    assert read("work", "xvdb", 13) == b"second" + b"first session"[6:]
    dom0.shutdown("work")
    dom0.lists("work:private", ["r1", "r2"])


def test_a_revert_can_be_undone(dom0, halted):
    revert = ("qvm-volume", "revert", "work:private")
    dom0.run("qvm-start", "work")
    dom0.run(*revert, status=1, says="the qube is running")
    dom0.shutdown("work")
    dom0.run(*revert, "r2")
    dom0.run("qvm-start", "work")
    assert read("work", "xvdb", 13) == b"first session"
    dom0.shutdown("work")
    # the session wrote nothing, so the stop makes no revision of the state
    # that was listed as a possible one
    dom0.lists("work:private", ["r2", "r3"])
    # the state before the revert is the newest revision
    dom0.run(*revert)
    dom0.run("qvm-start", "work")
    assert read("work", "xvdb", 13) == b"secondsession"


def test_revisions_to_keep_can_be_set(dom0, work):
    config = ("qvm-volume", "config", "work:private", "revisions_to_keep")
    dom0.run(*config, "4")
    info = ("qvm-volume", "info", "work:private")
    assert "revisions_to_keep 4" in dom0.run(*info).splitlines()
    dom0.run(*config, "-2", status=1, says="revisions_to_keep")
    assert dom0.run(*info, "revisions_to_keep") == "4\n"


def test_a_volume_grows_and_a_shrink_is_refused(dom0, halted):
    resize = ("qvm-volume", "resize", "work:private")
    size = ("qvm-volume", "info", "work:private", "size")
    dom0.run("qvm-start", "work")
    dom0.run(*resize, "80MiB")
    assert dom0.run(*size) == f"{80 * MIB}\n"
    write("work", "xvdb", b"at the end", 80 * MIB - 10)
    dom0.run(*resize, "-f", "70MiB", status=1, says="made smaller")
    dom0.shutdown("work")
    dom0.run(*resize, "96MiB")
    dom0.run(*resize, "1MiB", status=1, says="shrink")
    dom0.run("qvm-start", "work")
    assert read("work", "xvdb", 10, 80 * MIB - 10) == b"at the end"
    assert read("work", "xvdb", 10, 96 * MIB - 10) == bytes(10)


def test_an_import_replaces_the_content(dom0, halted):
    dom0.import_file("work:private", NOISE)
    size = int(dom0.run("qvm-volume", "info", "work:private", "size"))
    assert len(NOISE) <= size < len(NOISE) + 65536
    before = dom0.revisions("work:private")
    short = b"too short"
    for options in (("--no-resize",), ("--size", str(8 * MIB))):
        dom0.import_file(
            "work:private", short, *options, status=1, says="not enough"
        )
    dom0.import_file(
        "work:private", b"\0" * 99, "--size", "7", status=1, says="too much"
    )
    assert dom0.revisions("work:private") == before
    dom0.run("qvm-start", "work")
    data = read("work", "xvdb", size)
    assert data[: len(NOISE)] == NOISE
    assert not any(data[len(NOISE) :])
    dom0.import_file("work:private", NOISE, status=1, says="not powered off")


def test_a_clone_is_independent_of_its_source(dom0, work):
    dom0.run("qvm-clone", "-P", "plain", "work", "copy")
    dom0.run("qvm-start", "copy")
    digest = hashlib.sha256(read("copy", "xvdb", len(NOISE))).digest()
    assert digest == hashlib.sha256(NOISE).digest()
    assert read("copy", "xvda", len(ROOT)) == ROOT
    write("copy", "xvdb", b"its own")
    dom0.shutdown("copy")
    dom0.run("qvm-start", "work")
    assert read("work", "xvdb", 7) == NOISE[:7]
    dom0.shutdown("work")


def test_a_qube_can_use_a_cloned_template(dom0, work):
    dom0.run("qvm-clone", "-P", "plain", "tmpl", "tmpl2")
    dom0.run("qvm-prefs", "copy", "template", "tmpl2")
    dom0.run("qvm-start", "copy")
    assert read("copy", "xvda", len(ROOT)) == ROOT
    assert read("copy", "xvdb", 7) == b"its own"
    dom0.run("qvm-kill", "copy")


def test_a_disposable_starts_from_its_template(dom0, work):
    dom0.run("qvm-start", "disp")
    assert read("disp", "xvda", len(ROOT)) == ROOT
    assert read("disp", "xvdb", 7) == NOISE[:7]
    write("disp", "xvdb", b"not for long")
    dom0.shutdown("disp")
    dom0.run("qvm-start", "disp")
    assert read("disp", "xvdb", 7) == NOISE[:7]
    dom0.run("qvm-kill", "disp")


def test_a_change_of_a_template_is_visible_at_the_next_start(dom0, work):
    """A running qube does not see the change."""
    dom0.run("qvm-start", "work")
    dom0.run("qvm-start", "tmpl")
    write("tmpl", "xvda", b"THE")
    dom0.shutdown("tmpl")
    assert read("work", "xvda", 3) == b"the"
    outdated = ("qvm-volume", "info", "work:root", "is_outdated")
    assert dom0.run(*outdated) == "True\n"
    dom0.shutdown("work")
    dom0.run("qvm-start", "work")
    assert read("work", "xvda", 3) == b"THE"
    dom0.shutdown("work")
    dom0.run("qvm-volume", "revert", "tmpl:root")
    dom0.run("qvm-start", "work")
    assert read("work", "xvda", 3) == b"the"
    dom0.shutdown("work")


def test_removed_qubes_leave_no_datasets(dom0, work):
    remove = ("qvm-remove", "-f")
    dom0.run("qvm-start", "copy")
    dom0.run(*remove, "copy", status=1, says="not powered off")
    dom0.run("qvm-kill", "copy")
    for qube in ("copy", "disp", "work", "solo", "tmpl2"):
        dom0.run(*remove, qube)
    left = datasets("tank/plain/vm")
    qubes = {name.split("/")[3] for name in left if name != "tank/plain/vm"}
    assert qubes == {"tmpl"}
