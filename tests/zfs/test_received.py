# SPDX-License-Identifier: BSD-2-Clause
"""Pools that `zfs send` and `zfs receive` copied to another zpool."""

import os
import subprocess

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.store import holder, naming
from qubes_storage_zfs.store.container import Container
from qubes_storage_zfs.zfs import importexport, lzc

from ..support.lab import EncryptedLab, Lab, known_key
from ..support.zpools import (
    another_zpool,
    disk_of,
    export_zpool,
    read,
    sh,
    write,
)


@pytest.fixture
def second():
    """Create a second zpool; a test gives it the name of the first."""
    with another_zpool("second") as name:
        yield name


def send(lab, *options):
    """Copy the container to the second zpool."""
    snapshot = f"{lab.container}@move"
    copy = "second" + lab.container.removeprefix("away")
    above = copy.rpartition("/")[0]
    if above != "second":
        sh("zfs", "create", "-p", above)
    sh("zfs", "snapshot", "-r", snapshot)
    flags = " ".join(options)
    done = subprocess.run(
        f"zfs send {flags} {snapshot} | zfs receive -u {copy}",
        shell=True,
        check=False,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return copy


def take_the_place(lab):
    """Let the second zpool replace the one in qubes.xml."""
    guid = importexport.guid("away")
    export_zpool("away")
    export_zpool("second")
    disk = disk_of("second")
    sh("zpool", "import", "-N", "-d", str(disk), "second", "away")
    sh("zpool", "reguid", "-g", guid, "away")
    assert importexport.guid("away") == guid
    sh("zfs", "destroy", "-r", f"{lab.container}@move")
    lab.restart()


def own(dataset, name):
    """Return the value and source of a user property."""
    line = sh("zfs", "get", "-Hpo", "value,source", name, dataset)
    return tuple(line.split("\t"))


def lived_in(lab):
    """Create a volume of each kind and run a session of each."""
    root = lab.private("tmpl", b"root", name="root")
    private = lab.private("app", b"one")
    lab.session(private, b"two")
    app = lab.clone_of(root, "app")
    volatile = lab.volatile("app")
    lab.start(app, volatile)
    write(app.path, b"changed")
    write(volatile.path, b"secret")
    lab.stop(app, volatile)
    lab.run(private.revert())
    return root, private, app, volatile


def check_it_works(lab, volumes):
    """Start, stop, revert and remove the received volumes."""
    root, private, app, volatile = map(lab.again, volumes)
    lab.run(lab.pool.setup())
    before = lab.datasets()
    lab.run(lab.pool.first_use())
    assert lab.datasets() == before, "garbage collection destroyed something"
    assert [volume.vid for volume in lab.pool.list_volumes()] == [
        "app/private",
        "app/root",
        "app/volatile",
        "tmpl/root",
    ]
    assert len(private.revisions) >= 2
    lab.start(root, private, app, volatile)
    assert read(private.path) == b"one"
    assert read(app.path) == b"root"
    assert read(volatile.path) == b""
    write(private.path, b"three")
    lab.stop(root, private, app, volatile)
    assert lab.content(private) == b"three"
    lab.run(private.revert())
    assert lab.content(private) == b"one"
    for volume in (private, app, volatile, root):
        lab.run(volume.remove())
    assert lab.pool.list_volumes() == []
    assert not [x for x in lab.datasets() if "app" in x or "tmpl" in x]
    lab.run(lab.pool.destroy())
    assert own(lab.container, naming.CLAIM) == ("-", "-")


def test_received_pool_works_in_another_zpool(away, second):
    volumes = lived_in(away)
    send(away, "-R")
    take_the_place(away)
    assert own(away.container, naming.CLAIM)[1] == "received"
    check_it_works(away, volumes)


def test_received_encrypted_pool_keeps_its_key(away, second):
    lab = EncryptedLab("away")
    private = lab.private("app", b"one")
    send(lab, "-Rw")
    take_the_place(lab)
    with known_key() as key:
        lzc.load_key(lab.container, key)
    private = lab.again(private)
    lab.start(private)
    assert read(private.path) == b"one"
    write(private.path, b"two")
    lab.stop(private)
    assert lab.content(private) == b"two"
    lab.run(private.remove())
    assert lab.pool.list_volumes() == [] and lab.datasets() == []


def test_replica_without_properties_is_refused(away, second):
    volume = away.private(content=b"data")
    copy = f"second/{away.name}"
    for dataset in sh("zfs", "list", "-Hro", "name", away.container).split(
        "\n"
    ):
        to = copy + dataset.removeprefix(away.container)
        sh("zfs", "snapshot", f"{dataset}@one")
        done = subprocess.run(
            f"zfs send {dataset}@one | zfs receive -u {to}", shell=True
        )
        assert not done.returncode
    lab = away
    there = Lab.__new__(Lab)
    there.__dict__.update(lab.__dict__)
    there.container, there.options = copy, {"container": copy}
    pool = there.restart()
    volume = there.again(volume)
    for what in (volume.start(), volume.verify(), pool.setup()):
        with pytest.raises(
            StoragePoolException, match="received without its properties"
        ):
            there.run(what)
    before = there.datasets()
    there.run(volume.stop())
    there.run(there.pool.store.collect_garbage())
    assert there.datasets() == before
    # a mark alone does not prove that pointers are complete
    sh("zfs", "inherit", naming.CLAIM, away.container)
    with pytest.raises(StoragePoolException, match="zfs set"):
        lab.run(lab.again(volume).verify())


def test_received_holder_marks_are_ignored(away, second):
    """A received holder mark does not reserve a dataset."""
    volume = away.private(content=b"data")
    path = away.run(volume.export())
    exported = path.removeprefix("/dev/zvol/")
    alive = holder._marked(holder._identity(os.getppid()))
    assert alive in holder.Living()
    sh("zfs", "set", f"{naming.HOLDER}={alive}", exported)
    copy = send(away, "-R")
    sh("zfs", "destroy", "-r", f"{away.container}@move")
    sh("zfs", "destroy", "-r", f"{copy}@move")
    away.run(volume.export_end(path))
    name = copy + exported.removeprefix(away.container)
    mark, source = own(name, naming.HOLDER)
    assert (mark, source) == (alive, "received")
    store = Container.at(copy, f"{copy}/vm")
    assert away.run(store.reserved_elsewhere()) == []
    away.run(store.collect_garbage())
    left = sh("zfs", "list", "-Hro", "name", copy)
    assert name not in left.split("\n")
    assert f"{copy}/vm/work/private" in left


def test_unmarked_clone_of_an_unmarked_volume_is_kept(lab):
    """`zfs receive` creates such a clone if it was sent without properties."""
    volume = lab.private(content=b"data")
    sh("zfs", "inherit", naming.HOLDER, volume.dataset)
    sh("zfs", "create", f"{lab.pool.qubes_root}/copy")
    clone = f"{lab.pool.qubes_root}/copy/private.1"
    sh("zfs", "clone", f"{volume.dataset}@r2", clone)
    lab.restart()
    lab.run(lab.pool.store.collect_garbage())
    assert clone.removeprefix(f"{lab.container}/") in lab.datasets()
