# SPDX-License-Identifier: BSD-2-Clause
"""Snapshots by other tools.

The tools skip our datasets by default. If an administrator wants such
snapshots, the driver keeps them and works as before. The tests create, name
and prune snapshots as zfs-auto-snapshot and sanoid do.
"""

import itertools

import pytest

from ..support.lab import EncryptedLab, Lab
from ..support.zpools import MIB, read, sh, write

pytestmark = pytest.mark.side_a

_minutes = itertools.count(17)


def labels():
    """Return one snapshot name of each tool."""
    minute = next(_minutes)
    return (
        f"zfs-auto-snap_hourly-2026-11-22-20{minute:02}",
        f"autosnap_2026-11-22_20:{minute:02}:00_hourly",
    )


class Tools:
    """Both tools, run on the qubes root and all datasets below it."""

    def __init__(self, lab):
        self.lab = lab
        self.taken = set()

    def __call__(self):
        """Take one recursive snapshot with each tool."""
        qubes_root, (hourly, autosnap) = self.lab.pool.qubes_root, labels()
        note = "com.sun:auto-snapshot-desc=-"
        sh("zfs", "snapshot", "-o", note, "-r", f"{qubes_root}@{hourly}")
        sh("zfs", "snapshot", "-r", f"{qubes_root}@{autosnap}")
        names = self._list()
        assert names >= self.taken, "one was destroyed"
        self.taken = names

    def _list(self):
        return {
            name
            for name in self.lab.datasets("snapshot")
            if "@zfs-auto-snap_" in name or "@autosnap_" in name
        }

    def all_there(self):
        assert self._list() == self.taken

    def prune(self):
        """Destroy the snapshots that the tools took."""
        of = {}
        for name in sorted(self.taken):
            dataset, _, label = name.partition("@")
            of.setdefault(dataset, []).append(label)
        for dataset, names in of.items():
            every = f"{dataset}@{','.join(names)}"
            sh("zfs", "destroy", f"{self.lab.container}/{every}")
        assert not self._list()
        self.taken = set()


def holds(verb, lab, tools):
    names = [f"{lab.container}/{name}" for name in sorted(tools.taken)]
    sh("zfs", verb, "keep", *names)


@pytest.fixture
def lab(zpool):
    made = Lab(zpool)
    yield made
    # many snapshots would slow down the tests that follow
    sh("zfs", "destroy", "-r", made.container, check=False)


def test_operations_work_with_foreign_snapshots_between_them(lab):
    take = Tools(lab)
    root = lab.private("tmpl", b"system", name="root", revisions_to_keep=1)
    take()
    volume = lab.private(content=b"one", revisions_to_keep=1)
    app, volatile = lab.clone_of(root), lab.volatile()
    for text in b"two", b"three":
        take()
        lab.start(app, volume, volatile)
        take()
        assert lab.pool.list_volumes()
        # the next session sees nothing that this one wrote
        for each in app, volatile:
            before = b"system" if each is app else b""
            assert read(each.path) == before
            write(each.path, b"scribble")
        write(volume.path, text)
        take()
        lab.stop(app, volume, volatile)
        take()
        assert lab.content(volume) == text
        take.all_there()
        lab.session(root, b"system")
    assert len(volume.revisions) == 1
    lab.run(volume.revert())
    take()
    assert lab.content(volume) == b"two"
    lab.run(volume.resize(8 * MIB))
    take()
    source = lab.private("source", b"other")
    take()
    lab.run(volume.import_volume(source))
    take()
    assert lab.content(volume) == b"other"
    lab.run(volume.revert())
    assert lab.content(volume) == b"two"
    path = lab.run(volume.export())
    take()
    lab.run(volume.export_end(path))
    target = lab.run(volume.import_data(8 * MIB))
    take()
    lab.run(volume.import_data_end(False))
    assert target and lab.content(volume) == b"two"
    lab.restart()
    lab.run(lab.pool.first_use())
    take.all_there()
    again = lab.again(volume)
    assert lab.content(again) == b"two"


def test_removed_volumes_are_collected_once_foreign_snapshots_are_pruned(lab):
    take = Tools(lab)
    source = lab.private("source", b"other")
    volume = lab.private(content=b"one", revisions_to_keep=1)
    root = lab.private("tmpl", b"system", name="root")
    app, volatile = lab.clone_of(root), lab.volatile()
    lab.start(app, volatile)
    take()
    lab.stop(app, volatile)
    take()
    lab.run(volume.import_volume(source))
    take()
    lab.session(volume, b"two")
    take()
    path = lab.run(volume.export())
    take()
    lab.run(volume.export_end(path))
    for each in app, volatile, volume, root, source:
        lab.run(each.remove())
        take.all_there()
    # no removed volume is listed any more
    assert lab.pool.list_volumes() == []
    holds("hold", lab, take)
    lab.run(lab.pool.store.collect_garbage())
    take.all_there()
    holds("release", lab, take)
    take.prune()
    lab.restart()
    assert lab.sweep_until(lambda: lab.datasets() == ["vm"])


def test_name_is_reused_although_foreign_snapshots_exist(lab):
    take = Tools(lab)
    volume = lab.private(content=b"one")
    take()
    lab.run(volume.remove())
    take.all_there()
    again = lab.private(content=b"new")
    assert lab.content(again) == b"new" and not again.is_dirty()
    take()
    lab.run(again.revert())
    take.all_there()
    assert lab.content(again) == b""


def test_key_is_unloaded_although_foreign_snapshots_exist(zpool, person):
    lab = EncryptedLab(zpool)
    take = Tools(lab)
    volume = lab.private(content=b"one")
    take()
    assert lab.run(lab.pool.key.unload())
    take()
    lab.run(volume.stop())
    take.all_there()
    assert lab.content(volume) == b"one"


def test_snapshot_tools_skip_our_datasets(lab):
    """zfs-auto-snapshot skips a dataset if this property is false."""
    lab.private(content=b"one")
    shown = sh(
        *("zfs", "get", "-Hr", "-t", "filesystem,volume"),
        *("-o", "name,value", "com.sun:auto-snapshot", lab.pool.qubes_root),
    )
    values = {line.split("\t")[1] for line in shown.split("\n")}
    assert values == {"false"}
