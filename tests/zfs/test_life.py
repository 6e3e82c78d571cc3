# SPDX-License-Identifier: BSD-2-Clause
"""The lifecycle of volumes, on real ZFS."""

import logging
import os
import re

import pytest
from qubes.exc import StoragePoolException

from ..support.zpools import MIB, read, sh, write


def test_create_commits_an_empty_volume(lab):
    volume = lab.private()
    assert lab.datasets() == [
        "vm",
        "vm/work",
        "vm/work/private",
        "vm/work/private@r1",
    ]
    assert volume.revisions == {}
    assert not volume.is_dirty()
    assert lab.run(volume.verify())
    assert lab.content(volume) == b""


def test_stop_commits_written_content(lab):
    volume = lab.private(content=b"hello")
    assert lab.content(volume) == b"hello"
    assert list(volume.revisions) == ["r1"]
    lab.start(volume)
    assert read(volume.path) == b"hello"
    lab.stop(volume)
    # nothing was written, so there is no new revision
    assert list(volume.revisions) == ["r1"]
    assert lab.content(volume) == b"hello"
    lab.session(volume, b"again")
    assert list(volume.revisions) == ["r1", "r2"]


def test_volatile_volume_is_empty_at_each_start(lab):
    volume = lab.volatile()
    lab.run(volume.create())
    assert lab.datasets() == ["vm"]
    lab.session(volume, b"secret")
    lab.start(volume)
    assert read(volume.path) == b""
    lab.stop(volume)


def test_root_of_an_app_qube_is_a_clone_of_the_committed_state(lab):
    root = lab.private("tmpl", b"v1", name="root")
    app = lab.clone_of(root)
    lab.run(app.create())
    lab.start(app)
    assert read(app.path) == b"v1"
    write(app.path, b"scribble")
    assert not app.is_outdated()
    lab.session(root, b"v2")
    assert app.is_outdated()
    assert read(app.path) == b"scribble"
    lab.stop(app)
    lab.start(app)
    assert read(app.path) == b"v2"
    lab.stop(app)


def test_revert_can_be_reverted(lab):
    volume = lab.private(content=b"one")
    lab.session(volume, b"two")
    assert list(volume.revisions) == ["r1", "r2"]
    lab.run(volume.revert("r2"))
    assert lab.content(volume) == b"one"
    assert list(volume.revisions) == ["r1", "r2", "r3"]
    lab.run(volume.revert("r3"))
    assert lab.content(volume) == b"two"


def test_export_of_a_running_volume_has_the_committed_state(lab):
    volume = lab.private(content=b"before")
    lab.start(volume)
    write(volume.path, b"during")
    assert volume.is_dirty()
    assert lab.content(volume) == b"before"
    lab.stop(volume)
    assert lab.content(volume) == b"during"


def test_import_data_replaces_content_and_size(lab):
    volume = lab.private(content=b"old" * 100)
    path = lab.run(volume.import_data(5 * MIB + 1))
    assert read(path, 4096) == b""
    write(path, b"new")
    lab.run(volume.import_data_end(True))
    assert not os.path.exists(path) or volume.path == path
    assert volume.size == 5 * MIB + 16384
    assert lab.content(volume, 4096) == b"new"
    lab.run(volume.revert())
    assert lab.content(volume, 3) == b"old"
    assert volume.size == 4 * MIB


def test_failed_import_changes_nothing(lab):
    volume = lab.private(content=b"old")
    before = lab.datasets()
    write(lab.run(volume.import_data(MIB)), b"new")
    lab.run(volume.import_data_end(False))
    assert lab.datasets() == before
    assert lab.content(volume) == b"old"


def test_import_volume_clones_the_source(lab):
    source = lab.private("a", b"data")
    target = lab.private("b")
    lab.run(target.import_volume(source))
    assert lab.content(target) == b"data"
    origin = sh("zfs", "get", "-Ho", "value", "origin", target.dataset)
    assert origin.endswith("/vm/a/private@r2")


def test_resize_takes_effect_and_can_be_reverted(lab):
    volume = lab.private(content=b"x")
    lab.start(volume)
    lab.run(volume.resize(8 * MIB))
    write(volume.path, b"far", 7 * MIB)
    lab.stop(volume)
    assert volume.size == 8 * MIB
    lab.run(volume.resize(MIB))
    assert volume.size == MIB
    lab.run(volume.revert())
    assert volume.size == 8 * MIB
    lab.start(volume)
    assert read(volume.path, 16, 7 * MIB) == b"far"
    lab.stop(volume)


def test_remove_leaves_no_dataset(lab):
    volume = lab.private(content=b"x")
    lab.session(volume, b"y")
    lab.run(volume.revert())
    lab.run(volume.remove())
    assert lab.datasets() == ["vm"]
    with pytest.raises(KeyError):
        lab.pool.get_volume("work/private")


def journal(caplog):
    """Return the log lines about volumes, without durations and pools."""
    lines = [
        re.fullmatch(r"(.*) in pool \S+: (.*) \(\d+\.\d\d s\)", line)
        for line in (r.getMessage() for r in caplog.records)
    ]
    caplog.clear()
    return [f"{line[1]} {line[2]}" for line in lines if line]


def test_each_change_is_logged(lab, caplog):
    caplog.set_level(logging.INFO)
    volume = lab.private(content=b"one")
    assert journal(caplog) == [
        "work:private created generation 0",
        "work:private start returned generation 0",
        "work:private stop committed generation 0",
    ]
    # a second stop has nothing to commit
    lab.run(volume.stop())
    assert journal(caplog) == []
    lab.session(volume, b"two")
    lab.run(volume.revert())
    lab.run(volume.resize(8 * MIB))
    assert journal(caplog)[2:] == [
        "work:private revert to r2 created generation 1",
        f"work:private resize set generation 1 to {8 * MIB} bytes",
    ]
    with pytest.raises(StoragePoolException):
        lab.run(volume.revert("r77"))
    lab.content(volume)
    lab.replace(volume, b"three")
    assert journal(caplog) == [
        "work:private export created generation 2",
        "work:private export_end destroyed generation 2",
        "work:private import_data created generation 3",
        "work:private import_data_end committed generation 3",
    ]
    root = lab.clone_of(volume)
    lab.session(root, b"lost")
    # stop() only prepares a disposable volume
    assert journal(caplog) == [
        "app:root start returned generation 1",
        "app:root prepared generation 1",
    ]
    lab.run(root.remove())
    lab.run(volume.remove())
    assert journal(caplog) == [
        "app:root remove destroyed all generations",
        "work:private remove destroyed all generations",
    ]
