# SPDX-License-Identifier: BSD-2-Clause
"""Changes of qubes.xml by a migration and by its undo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_storage_zfs.migrate import files
from qubes_storage_zfs.migrate.errors import Refused
from qubes_storage_zfs.migrate.pools import migrating_pool
from qubes_storage_zfs.tools import qubes_xml

CHECKOUT = os.environ.get("QUBES_CORE_ADMIN")
ROOT = Path(__file__).resolve().parent.parent.parent

#: as core-admin 4.4 writes it, shortened
TEXT = """\
<qubes version="3.0">
  <pools>
    <pool name="varlibqubes" dir_path="/var/lib/qubes" driver="file"/>
    <pool name="vault" container="tank/qubes" driver="zfs" \
revisions_to_keep="1" ephemeral_volatile="False"/>
  </pools>
  <!-- a person's -->
  <properties>
    <property name="default_pool">vault</property>
  </properties>
  <domains>
    <domain id="domain-2" class="AppVM">
      <properties>
        <property name="qid">2</property>
        <property name="name">work</property>
        <property name="template" ref="yes">domain-1</property>
      </properties>
      <features/>
      <volume-config>
        <volume name="root" pool="vault" vid="tank/qubes/work/root" rw="True" \
save_on_stop="False" snap_on_start="True" source="tank/qubes/tmpl/root"/>
        <volume name="private" pool="vault" vid="tank/qubes/work/private" \
rw="True" save_on_stop="True" snap_on_start="False" size="2147483648"/>
        <volume name="volatile" pool="varlibqubes" vid="tank/qubes/x" \
rw="True" save_on_stop="False" snap_on_start="False"/>
        <volume name="kernel" pool="linux-kernel" vid="" rw="False"/>
      </volume-config>
    </domain>
  </domains>
</qubes>
"""

#: creates a qubes.xml with core-admin, or loads one and saves it again
DRIVE = """\
import asyncio, sys
import qubes, qubes.app, qubes.storage.zfs, qubes.vm.appvm
import qubes.vm.templatevm

async def main(path, new):
    app = qubes.Qubes(path, load=not new, offline_mode=True)
    if new:
        app.load_initial_values()
        pool = qubes.storage.zfs.ZFSPool(name="vault", container="tank/qubes")
        app.pools["vault"] = app.default_pool = pool
        more = {"label": "red", "kernel": None}
        tmpl = app.add_new_vm("TemplateVM", name="tmpl", **more)
        app.add_new_vm("AppVM", name="work", template=tmpl, **more)
        app.add_new_vm("StandaloneVM", name="solo", **more)
    for vm in app.domains:
        for volume in getattr(vm, "volumes", {}).values():
            if str(volume.pool) == "vault":
                source = volume.source and volume.source.vid
                print(volume.pool.driver, volume.vid, source,
                      volume.save_on_stop, volume.snap_on_start)
    app.save(lock=False)

# upstream's driver asks ZFS for the size of each volume when it is written
def absent(*arguments, **named):
    raise qubes.exc.StoragePoolException("there is no zpool")

qubes.storage.zfs.zfs = absent
asyncio.run(main(sys.argv[1], sys.argv[2] == "new"))
"""
ENTRY_POINTS = """\
[qubes.vm]
AppVM = qubes.vm.appvm:AppVM
TemplateVM = qubes.vm.templatevm:TemplateVM
StandaloneVM = qubes.vm.standalonevm:StandaloneVM
AdminVM = qubes.vm.adminvm:AdminVM
[qubes.storage]
file = qubes.storage.file:FilePool
linux-kernel = qubes.storage.kernels:LinuxKernel
zfs = qubes.storage.zfs:ZFSPool
zfs_zvol = qubes_storage_zfs:ZfsZvolPool
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(qubes_xml, "SOCKET", str(tmp_path / "sock"))
    path = tmp_path / "qubes.xml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


def pool_of(store):
    return migrating_pool(store.pool("vault").attrib, store.volumes("vault"))


def migrated(path):
    store = qubes_xml.QubesXml(path)
    pool = pool_of(store)
    store.adopt(pool)
    return pool, store.write()


def test_undo_restores_the_migrated_file(file):
    pool, backup = migrated(file)
    text = file.read_text()
    expected = TEXT.replace('driver="zfs"', 'driver="zfs_zvol"')
    for name in "work/root", "work/private", "tmpl/root":
        expected = expected.replace(f'"tank/qubes/{name}"', f'"{name}"')
    assert text.replace(" />", "/>") == expected
    assert backup is not None and backup.read_text() == TEXT
    for path in file, backup:
        assert path.stat().st_mode & 0o777 == 0o640
    reloaded = qubes_xml.QubesXml(file)
    reloaded.undo(pool, "zfs", {})
    reloaded.write()
    assert file.read_text().replace(" />", "/>") == TEXT
    assert len(list(file.parent.iterdir())) <= 3


def test_volumes_of_the_older_layout_follow_the_class_of_their_qube(file):
    old = TEXT.replace('driver="zfs"', 'driver="zfs_zvol" zfs_ns="tank"')
    old = old.replace('vid="tank/qubes/', 'vid="tank/qubes/vm/')
    old = old.replace('"True" snap_on_start="False" s', '"False" s')
    file.write_text(old)
    pool, _ = migrated(file)
    store = qubes_xml.QubesXml(file)
    private = store.volumes("vault")[1]
    assert private.vid == "work/private" and private.is_persistent(pool.origin)
    assert "save_on_stop" not in private.attributes
    before = {"private": {"save_on_stop": "False"}}
    root = {"root": {"save_on_stop": "False", "snap_on_start": "True"}}
    source = "tank/qubes/tmpl/root"
    store.undo(pool, "zfs_zvol", {"work": {**before, **root}})
    store.write()
    (first, second) = qubes_xml.QubesXml(file).volumes("vault")
    assert second.attributes["save_on_stop"] == "False"
    assert second.vid == "tank/qubes/vm/work/private"
    assert first.attributes["snap_on_start"] == "True"
    assert first.attributes["source"].endswith(source)
    # a second undo after a crash has no record of the dropped attributes
    store = qubes_xml.QubesXml(file)
    store.undo(pool, "zfs_zvol", {})
    assert store.write() is None


def test_an_unchanged_file_is_not_written(file):
    store = qubes_xml.QubesXml(file)
    assert store.write() is None
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("cause", ["qubesd", "changed"])
def test_the_file_is_not_written_if_qubesd_runs_again(file, cause):
    store = qubes_xml.QubesXml(file)
    store.adopt(pool_of(store))
    with socket.socket(socket.AF_UNIX) as listening:
        if cause == "qubesd":
            listening.bind(qubes_xml.SOCKET)
            listening.listen()
        else:
            file.write_text(TEXT + "\n")
        before = file.read_text()
        with pytest.raises(Refused, match="qubesd runs again"):
            store.write()
    assert file.read_text() == before


def test_a_stale_socket_is_no_running_qubesd(file):
    assert not qubes_xml.qubesd_runs()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(qubes_xml.SOCKET)
        listening.listen()
        assert qubes_xml.qubesd_runs()
    assert not qubes_xml.qubesd_runs()


@pytest.mark.parametrize("text", ["", "<qubes>", "\0"])
def test_an_unreadable_file_is_refused(file, text):
    file.write_text(text)
    with pytest.raises(Refused, match="cannot be read"):
        qubes_xml.QubesXml(file)
    file.unlink()
    with pytest.raises(Refused, match="cannot be read"):
        qubes_xml.QubesXml(file)


@pytest.mark.skipif(not CHECKOUT, reason="QUBES_CORE_ADMIN is not set")
def test_core_admin_reads_the_migrated_file(tmp_path, monkeypatch):
    monkeypatch.setattr(qubes_xml, "SOCKET", str(tmp_path / "sock"))
    path = tmp_path / "qubes.xml"
    info = tmp_path / "qubes_core-4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: qubes-core\nVersion: 4\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)

    def core_admin(mode):
        where = [CHECKOUT, f"{CHECKOUT}/test-packages", tmp_path, ROOT]
        done = subprocess.run(
            [sys.executable, "-c", DRIVE, str(path), mode],
            env={**os.environ, "PYTHONPATH": ":".join(map(str, where))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return sorted(done.stdout.split("\n"))

    before = core_admin("new")
    assert "zfs tank/qubes/work/root tank/qubes/tmpl/root False True" in before
    pool, _ = migrated(path)
    ours = core_admin("again")
    assert ours == sorted(
        line.replace("zfs ", "zfs_zvol ").replace("tank/qubes/", "")
        for line in before
    )
    reloaded = qubes_xml.QubesXml(path)
    reloaded.undo(pool, "zfs", {})
    reloaded.write()
    assert core_admin("again") == before


# --- in a folder that others may write to


def test_no_symlink_is_followed(file, monkeypatch):
    monkeypatch.setattr(qubes_xml.time, "strftime", lambda form: form)
    name_of_backup = file.name + ".%Y-%m-%d-%H%M%S"
    target = file.with_name("target")
    target.write_text("of another user")
    for name in name_of_backup, f"{name_of_backup}-1":
        file.with_name(name).symlink_to(target)
    _, backup = migrated(file)
    assert backup.name == f"{name_of_backup}-2" and backup.read_text() == TEXT
    assert not backup.is_symlink() and backup.stat().st_mode & 0o777 == 0o640
    assert target.read_text() == "of another user"
    assert file.with_name(name_of_backup).is_symlink()
    left = {path.name for path in file.parent.iterdir()}
    assert not [name for name in left if name.startswith(".")]
    target.write_text(TEXT)
    file.unlink()
    file.symlink_to(target)
    with pytest.raises(Refused, match="cannot be read"):
        qubes_xml.QubesXml(file)
    assert target.read_text() == TEXT


def test_a_file_swapped_for_a_symlink_is_not_written(file):
    store = qubes_xml.QubesXml(file)
    store.adopt(pool_of(store))
    target = file.with_name("target")
    file.rename(target)
    file.symlink_to(target)
    with pytest.raises(Refused, match="cannot be written"):
        store.write()
    assert target.read_text() == TEXT


@pytest.mark.parametrize("fails", ["fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_no_temporary_file(file, monkeypatch, fails):
    store = qubes_xml.QubesXml(file)
    store.adopt(pool_of(store))

    def failing(*arguments, **named):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, fails, failing)
        with pytest.raises(Refused, match="no space"):
            store.write()
    assert file.read_text() == TEXT
    names = [path.name for path in file.parent.iterdir()]
    assert not [name for name in names if name.startswith(".")]


def test_names_of_temporary_files_are_unpredictable(file, monkeypatch):
    created, create = [], files._create

    def noting(folder, name, data, like):
        created.append(name)
        create(folder, name, data, like)

    monkeypatch.setattr(files, "_create", noting)
    for number in range(2):
        files.replace(file, b"%d" % number, file.stat())
    first, second = created
    assert first != second and len(first) > 32


def test_every_change_is_listed(file):
    store = qubes_xml.QubesXml(file)
    store.adopt(pool_of(store), "123")
    assert list(store.changes()) == [
        "pool vault: set driver=zfs_zvol",
        "pool vault: set zpool_guid=123",
        "volume tank/qubes/work/root: set source=tmpl/root",
        "volume tank/qubes/work/root: set vid=work/root",
        "volume tank/qubes/work/private: set vid=work/private",
    ]


def test_undo_removes_the_recorded_guid(file):
    store = qubes_xml.QubesXml(file)
    pool = pool_of(store)
    store.adopt(pool, "123")
    store.write()
    reloaded = qubes_xml.QubesXml(file)
    reloaded.undo(pool, "zfs", {}, remove_guid=False)
    assert reloaded.pool("vault").get("zpool_guid") == "123"
    reloaded.undo(pool, "zfs", {})
    reloaded.write()
    assert file.read_text().replace(" />", "/>") == TEXT


def test_dropped_attributes_must_be_boolean(file):
    file.write_text(TEXT.replace('driver="zfs"', 'driver="zfs_zvol"'))
    store = qubes_xml.QubesXml(file)
    pool = pool_of(store)
    assert store.dropped(pool)["work"]["private"] == {
        "save_on_stop": "True",
        "snap_on_start": "False",
    }
    file.write_text(file.read_text().replace('stop="True"', 'stop="perhaps"'))
    with pytest.raises(Refused, match="save_on_stop='perhaps' for a volume"):
        qubes_xml.QubesXml(file).dropped(pool)
