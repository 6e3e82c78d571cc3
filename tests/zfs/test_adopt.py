# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs adopt: migrate pools of upstream's driver and of the older layout.

Upstream's driver itself creates the upstream pools, if core-admin is installed.
The same tests also run on pools created with the commands that it runs.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import time
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.migrate import saved
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.policy import ROOT_SETTINGS
from qubes_storage_zfs.tools import adopt, main, qubes_xml
from qubes_storage_zfs.zfs import channel, commands, devices, lzc, runtime

from ..support.background import settled
from ..support.lab import create_encrypted
from ..support.zpools import MIB, open_device, read, sh, write

pytestmark = pytest.mark.side_a

try:
    from qubes.storage import zfs as upstream
except ImportError:
    upstream = None

POOL = "vault"
#: kind of a volume -> its attributes in qubes.xml
KINDS = {
    "kept": {"save_on_stop": "True", "snap_on_start": "False"},
    "snap": {"save_on_stop": "False", "snap_on_start": "True"},
    "scratch": {"save_on_stop": "False", "snap_on_start": "False"},
}


class ByHand:
    """Create upstream's layout with the commands of upstream's driver."""

    def __init__(self, container):
        self.container = container
        self._clean = 0
        sh(
            *("zfs", "create", "-p", "-o", "mountpoint=none"),
            *("-o", "volmode=dev", "-o", f"{naming.UDEV_FLAG}=true", container),
        )

    def path(self, qube, name):
        dataset = f"{self.container}/{qube}/{name}"
        return asyncio.run(devices.wait_for_link(dataset))

    def create(self, qube, name, *, kept=True):
        zvol = f"{self.container}/{qube}/{name}"
        options = [] if kept else ["-o", "com.sun:auto-snapshot=false"]
        sh("zfs", "create", "-p", "-s", "-V", str(4 * MIB), *options, zvol)
        if kept:
            sh("zfs", "snapshot", f"{zvol}@qubes:after-create:{stamp()}")
            self._mark_clean(zvol)

    def _mark_clean(self, zvol):
        before = [name for name in snapshots(zvol) if "clean" in name]
        self._clean += 1
        sh("zfs", "snapshot", f"{zvol}@qubes-clean-abc{self._clean}")
        for name in before:
            sh("zfs", "destroy", "-d", "-r", f"{zvol}@{name}")

    def start(self, qube, name):
        zvol = f"{self.container}/{qube}/{name}"
        sh("zfs", "snapshot", f"{zvol}@qubes:before-start:{stamp()}")
        sh("zfs", "set", "org.qubes:dirty=on", "readonly=off", zvol)

    def stop(self, qube, name):
        zvol = f"{self.container}/{qube}/{name}"
        sh("zfs", "set", "org.qubes:dirty=off", zvol)
        self._mark_clean(zvol)

    def clone(self, qube, name, source, source_name):
        """Create the root volume of a running app qube."""
        zvol = f"{self.container}/{source}/{source_name}"
        (clean,) = (each for each in snapshots(zvol) if "clean" in each)
        new = f"{self.container}/{qube}/{name}"
        sh("zfs", "clone", "-p", f"{zvol}@{clean}", new)
        sh("zfs", "set", "org.qubes:dirty=on", "readonly=off", new)


class ByDriver(ByHand):
    """Create the same layout with upstream's driver."""

    def __init__(self, container):
        self.container = container
        self.pool = upstream.ZFSPool(name=POOL, container=container)
        self.pool.revisions_to_keep = 5
        self.volumes = {}
        asyncio.run(self.pool.setup())

    def _volume(self, qube, name, **kind):
        vm = types.SimpleNamespace(name=qube)
        given = {"name": name, "pool": POOL, "size": 4 * MIB, "rw": True}
        volume = self.pool.init_volume(vm, {**given, **kind})
        self.volumes[qube, name] = volume
        return volume

    def create(self, qube, name, *, kept=True):
        volume = self._volume(qube, name, save_on_stop=kept)
        asyncio.run(volume.create())
        if not kept:
            asyncio.run(volume.start())

    def start(self, qube, name):
        asyncio.run(self.volumes[qube, name].start())

    def stop(self, qube, name):
        asyncio.run(self.volumes[qube, name].stop())

    def clone(self, qube, name, source, source_name):
        origin = self.volumes[source, source_name]
        volume = self._volume(qube, name, snap_on_start=True, source=origin)
        asyncio.run(volume.start())


def stamp():
    return f"{time.time():.6f}"


def snapshots(zvol):
    out = sh("zfs", "list", "-Ho", "name", "-t", "snapshot", zvol)
    return [line.partition("@")[2] for line in out.split("\n") if line]


class World:
    """A pool of another layout, qubes.xml, and the tool.

    :ivar made: the ByHand or ByDriver that created the pool
    :ivar kept: (qube, volume) -> digest of the volume's content
    """

    def __init__(self, made, folder, patch):
        self.made, self.container = made, made.container
        self.xml = folder / "qubes.xml"
        self.socket = folder / "qubesd.sock"
        patch.setattr(qubes_xml, "SOCKET", str(self.socket))
        patch.setattr(saved, "FOLDER", folder / "kept")
        self.kept = {}
        self.volumes = []
        self.driver = "zfs"
        self.options = {"container": self.container, "revisions_to_keep": "3"}

    def has(self, qube, klass, name, kind, source=None):
        vid = f"{self.container}/{qube}/{name}"
        attributes = {
            "name": name,
            "pool": POOL,
            "vid": vid,
            "revisions_to_keep": "3",
            "rw": "True",
            **KINDS[kind],
            "size": str(4 * MIB),
        }
        if source is not None:
            attributes["source"] = f"{self.container}/{source}"
        self.volumes.append((qube, klass, attributes))

    def write_xml(self):
        """Write qubes.xml in the form that qubesd writes."""
        root = ElementTree.Element("qubes", version="3.0")
        pools = ElementTree.SubElement(root, "pools")
        pool = {"name": POOL, "driver": self.driver, **self.options}
        ElementTree.SubElement(pools, "pool", pool)
        ElementTree.SubElement(pools, "pool", name="other", driver="file")
        domains = ElementTree.SubElement(root, "domains")
        found = {}
        for qube, klass, attributes in self.volumes:
            if qube not in found:
                node = {"id": f"domain-{len(found) + 1}", "class": klass}
                domain = ElementTree.SubElement(domains, "domain", node)
                properties = ElementTree.SubElement(domain, "properties")
                name = ElementTree.SubElement(properties, "property")
                name.set("name", "name")
                name.text = qube
                found[qube] = ElementTree.SubElement(domain, "volume-config")
            ElementTree.SubElement(found[qube], "volume", attributes)
        ElementTree.indent(root)
        self.xml.write_bytes(ElementTree.tostring(root) + b"\n")
        self.xml.chmod(0o660)

    def session(self, qube, name, content):
        self.made.start(qube, name)
        write(self.made.path(qube, name), content)
        self.made.stop(qube, name)

    def learn(self, *volumes):
        for qube, name in volumes:
            self.kept[qube, name] = digest(self.made.path(qube, name))

    def __call__(self, *arguments):
        """Run the tool and return its exit status."""
        given = ["adopt", "--qubes-xml", str(self.xml), *arguments, POOL]
        return main.main(given)

    def datasets(self):
        """Return names and GUIDs, and the properties set on each dataset."""
        names = sh(
            *("zfs", "list", "-Hr", "-t", "all", "-s", "name"),
            *("-o", "name,guid,origin", self.container),
        )
        properties = sh(
            *("zfs", "get", "-Hr", "-s", "local", "-o", "name,property,value"),
            *("all", self.container),
        )
        return sorted(names.split("\n")), sorted(properties.split("\n"))

    def adopted(self, kind=ZfsZvolPool):
        """Build our pool and its volumes from qubes.xml, as qubesd does."""
        runtime.restart()
        root = ElementTree.fromstring(self.xml.read_bytes())
        node = root.find(f"./pools/pool[@name='{POOL}']")
        attributes = dict(node.attrib)
        assert attributes.pop("driver") == kind.driver
        pool = kind(**attributes)
        volumes = {}
        for qube, _, _ in self.volumes:
            vm = types.SimpleNamespace(name=qube, app=None)
            for domain in root.iterfind("./domains/domain"):
                if domain.findtext("properties/property") != qube:
                    continue
                for each in domain.iterfind("volume-config/volume"):
                    config = dict(each.attrib)
                    for key, value in config.items():
                        if value in ("True", "False"):
                            config[key] = value == "True"
                    if kind is not ZfsZvolPool or self.driver != "zfs":
                        config.setdefault("snap_on_start", False)
                        config.setdefault(
                            "save_on_stop", config["name"] == "private"
                        )
                    if "source" in config:
                        config["source"] = volumes[config["source"]]
                    volume = pool.init_volume(vm, config)
                    volumes[volume.vid] = volume
        return pool, volumes


def node(volume):
    """Return the volume's device node; udev updates its link after a rename."""
    return run(devices.wait_for_link(volume.dataset))


def digest(path, length=4 * MIB):
    with open_device(path, 0) as opened:
        return hashlib.sha256(opened.read(length)).hexdigest()


def run(awaitable):
    return asyncio.run(settled(awaitable))


WAYS = ["by hand", *(["by upstream's driver"] if upstream else [])]


@pytest.fixture(params=WAYS)
def world(zpool, tmp_path, monkeypatch, request):
    """Create a template, two app qubes, and a zvol that qubesd does not know.

    One app qube was running when the machine was switched off.
    """
    kind = ByHand if request.param == "by hand" else ByDriver
    return upstream_world(kind, zpool, tmp_path, monkeypatch)


@pytest.fixture
def small(zpool, tmp_path, monkeypatch):
    return upstream_world(ByHand, zpool, tmp_path, monkeypatch)


def upstream_world(kind, zpool, tmp_path, monkeypatch):
    container = f"{zpool}/up-{tmp_path.name}"
    world = World(kind(container), tmp_path, monkeypatch)
    made = world.made
    made.create("tmpl", "root")
    world.session("tmpl", "root", b"TEMPLATE")
    made.create("work", "private")
    world.session("work", "private", b"one")
    world.session("work", "private", b"two")
    made.create("lost", "private")
    made.start("lost", "private")
    made.create("lost", "volatile", kept=False)
    made.clone("lost", "root", "tmpl", "root")
    write(made.path("lost", "private"), b"not committed")
    write(made.path("lost", "root"), b"scribble")
    sh("zfs", "snapshot", f"{container}/work/private@mine")
    sh("zfs", "create", "-s", "-V", "4m", f"{container}/stray")
    sh("zfs", "create", "-p", f"{container}/.importing")
    world.has("tmpl", "TemplateVM", "root", "kept")
    for qube in "work", "lost":
        world.has(qube, "AppVM", "root", "snap", "tmpl/root")
        world.has(qube, "AppVM", "private", "kept")
        world.has(qube, "AppVM", "volatile", "scratch")
    world.write_xml()
    world.learn(("tmpl", "root"), ("work", "private"), ("lost", "private"))
    return world


# --- upstream's layout


def test_adopt_changes_nothing_without_apply(small, capsys):
    before, text = small.datasets(), small.xml.read_bytes()
    assert small() == 0
    assert small("--dry-run") == 0
    assert (small.datasets(), small.xml.read_bytes()) == (before, text)
    out = capsys.readouterr().out
    assert (
        f"{small.container}/work: is renamed to {small.container}/vm/work"
        in out
    )
    assert "private is migrated with 3 older revisions\n" in out
    assert "private is migrated with 2 older revisions, with uncomm" in out
    assert "root is discarded, as at each start" in out
    assert f"note: qubesd has no volume in {small.container}" in out
    assert f"sudo qvm-zfs adopt --apply {POOL}" in out


def test_migrated_volumes_keep_content_and_revisions(world):
    dates = {
        name: sh("zfs", "get", "-Hpo", "value", "creation", f"{zvol}@{name}")
        for zvol in [f"{world.container}/work/private"]
        for name in snapshots(zvol)
    }
    assert world("--apply") == 0
    pool, volumes = world.adopted()
    assert sorted(volume.vid for volume in pool.list_volumes()) == [
        "lost/private",
        "tmpl/root",
        "work/private",
    ]
    for (qube, name), content in world.kept.items():
        volume = volumes[f"{qube}/{name}"]
        assert run(volume.verify())
        assert digest(node(volume)) == content
    work, lost = volumes["work/private"], volumes["lost/private"]
    root = volumes["tmpl/root"]
    assert [v.is_dirty() for v in (work, root, lost)] == [False, False, True]
    told = sorted(int(value) for name, value in dates.items() if ":" in name)
    assert list(work.revisions) == [f"r{n}" for n in range(1, len(told) + 1)]
    assert list(work.revisions.values()) == [
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(date)) for date in told
    ]
    assert "mine" in snapshots(f"{world.container}/vm/work/private")
    # qubesd stops each volume of a halted qube when it starts
    for volume in volumes.values():
        run(volume.stop())
    assert not lost.is_dirty() and read(node(lost)) == b"not committed"
    left = sh("zfs", "list", "-Hro", "name", "-t", "volume", world.container)
    assert "vm/lost/root" not in left and "vm/lost/volatile" not in left
    assert f"{world.container}/stray" in left


def test_migrated_volumes_can_be_used_and_removed(world):
    assert world("--apply") == 0
    pool, volumes = world.adopted()
    work, app = volumes["work/private"], volumes["work/root"]
    run(app.start())
    run(work.start())
    assert read(app.path) == b"TEMPLATE" and read(work.path) == b"two"
    write(work.path, b"three")
    run(app.stop())
    run(work.stop())
    exported = run(work.export())
    assert read(exported) == b"three"
    run(work.export_end(exported))
    for content in b"two", b"three":
        run(work.revert(list(work.revisions)[-1]))
        run(work.start())
        assert read(work.path) == content
        run(work.stop())
    for volume in work, app, volumes["work/volatile"]:
        run(volume.remove())
    vids = [volume.vid for volume in pool.list_volumes()]
    assert sorted(vids) == ["lost/private", "tmpl/root"]
    # a snapshot of an administrator keeps its dataset
    names = sh("zfs", "list", "-Hrt", "snapshot", "-o", "name", world.container)
    assert [n for n in names.split("\n") if "/vm/work/" in n] == [
        f"{world.container}/vm/work/private@mine"
    ]
    assert run(volumes["tmpl/root"].verify())


def test_adopt_sets_the_properties_of_a_qubes_root(small):
    assert small("--apply") == 0
    qubes_root = f"{small.container}/vm"
    for name, value in ROOT_SETTINGS.items():
        got = sh("zfs", "get", "-Ho", "value,source", name, qubes_root)
        assert got == f"{value}\tlocal"


def test_undo_restores_datasets_and_qubes_xml(world):
    before, text = world.datasets(), world.xml.read_bytes()
    volume = f"{world.container}/tmpl/root"
    sh("zfs", "set", "readonly=on", volume)
    before = world.datasets()
    assert world("--apply") == 0
    _, volumes = world.adopted()
    assert "on" not in sh(
        "zfs",
        "get",
        "-Ho",
        "value",
        "readonly",
        f"{world.container}/vm/tmpl/root",
    )
    assert volumes and world.datasets() != before
    assert world("--undo") == 0
    assert world("--undo", "--apply") == 0
    assert world.datasets() == before
    assert world.xml.read_bytes() == text
    assert world("--apply") == 0


def test_undo_is_refused_after_a_start(small, capsys):
    assert small("--apply") == 0
    _, volumes = small.adopted()
    work = volumes["work/private"]
    run(work.start())
    write(work.path, b"by our driver")
    before = small.datasets()
    assert small("--undo", "--apply") == 1
    assert (
        "private of work was written to after the migration"
        in capsys.readouterr().err
    )
    run(work.stop())
    assert small("--undo", "--apply") == 1
    assert (
        "private of work was committed after the migration"
        in capsys.readouterr().err
    )
    run(volumes["work/root"].start())
    assert small("--undo", "--apply") == 1
    assert (
        "work was started after the migration (root)" in capsys.readouterr().err
    )
    assert small.datasets()[0] != before[0]
    assert small() == 0
    assert "already migrated" in capsys.readouterr().out


class Died(BaseException):
    pass


def dying_after(patch, calls):
    """Make the tool die before or after one of its changes to the disk.

    :param calls: two points per change: odd ones die before it, even ones after
    """
    left = [calls]

    def wrap(function):
        async def counted(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                raise Died
            result = await function(*arguments, **named)
            left[0] -= 1
            if left[0] == 0:
                raise Died
            return result

        return counted

    patch.setattr(channel, "change", wrap(channel.change))
    patch.setattr(lzc, "create_filesystem", wrap(lzc.create_filesystem))
    patch.setattr(commands, "rename", wrap(commands.rename))
    patch.setattr(commands, "set_property", wrap(commands.set_property))

    def wrap_file(function):
        def counted(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise Died
            return function(*arguments)

        return counted

    for place, name in (
        (qubes_xml.QubesXml, "write"),
        (saved, "save"),
        (saved, "delete"),
    ):
        patch.setattr(place, name, wrap_file(getattr(place, name)))
    return left


def killed_at_each(world, monkeypatch, *arguments):
    """Kill the tool at point 1, 2, ... and run it again from that state."""
    point, deaths = 0, 0
    while True:
        point += 1
        with monkeypatch.context() as patch:
            dying_after(patch, point)
            with contextlib.suppress(Died):
                assert world(*arguments) == 0
                return deaths
        deaths += 1
        # from here on, each run continues from the state that the last one left
        point = min(point, 3)


def test_adopt_completes_after_kills_at_any_change(small, monkeypatch):
    before, text = small.datasets(), small.xml.read_bytes()
    assert killed_at_each(small, monkeypatch, "--apply") > 5
    adopted = properties_of(small)
    assert killed_at_each(small, monkeypatch, "--undo", "--apply") > 5
    assert small.datasets() == before and small.xml.read_bytes() == text
    assert small("--apply") == 0
    assert properties_of(small) == adopted
    pool, volumes = small.adopted()
    assert len(pool.list_volumes()) == 3
    for (qube, name), content in small.kept.items():
        assert digest(node(volumes[f"{qube}/{name}"])) == content


def properties_of(world):
    """Return the properties; the GUID of the qubes root differs each time."""
    return world.datasets()[1]


def test_undo_restores_all_after_a_kill_at_any_change(small, monkeypatch):
    before, text = small.datasets(), small.xml.read_bytes()
    # ADOPT_STEP=2 tries every change: after one is the same as before the next
    step = int(os.environ.get("ADOPT_STEP", "6"))
    for point in range(2, 100, step):
        with monkeypatch.context() as patch:
            left = dying_after(patch, point)
            with contextlib.suppress(Died):
                assert small("--apply") == 0
        done = left[0] > 0
        if small.datasets() != before:
            assert small("--undo", "--apply") == 0
        assert small.datasets() == before, point
        assert small.xml.read_bytes() == text
        if done:
            break
    assert point > 15


# --- refusals before the first change


@pytest.mark.parametrize(
    "how, why",
    [
        ("open", "is in use by process"),
        ("qubesd", "qubesd is running"),
        ("home", "exists, but the migration creates a dataset"),
        ("qube called vm", "exists, but the migration creates a dataset"),
        ("volmode", "has volmode=full"),
        ("our name", "work/private@r3 has a name that this driver"),
        ("generation", "private.1, and its name looks like"),
        ("blank orphan", "which is nearly empty"),
        ("snapshots of scratch", "although qubesd discards its content"),
        ("claimed", "belongs to the pool another"),
        ("vid", "which does not start with"),
        ("no such pool", "has no pool vault"),
        ("another driver", "is not on ZFS (its driver is lvm_thin)"),
    ],
)
def test_adopt_refuses_before_it_changes_anything(small, capsys, how, why):
    base = f"{small.container}/work/private"
    held = contextlib.ExitStack()
    if how == "open":
        held.enter_context(open_device(small.made.path("work", "private"), 0))
    elif how == "qubesd":
        import socket

        listening = held.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(small.socket))
        listening.listen()
    elif how in ("home", "qube called vm"):
        sh("zfs", "create", f"{small.container}/vm")
    elif how == "volmode":
        sh("zfs", "set", "volmode=full", base)
    elif how == "our name":
        sh("zfs", "snapshot", f"{base}@r3")
    elif how == "generation":
        sh("zfs", "clone", f"{base}@mine", f"{base}.1")
    elif how == "blank orphan":
        sh("zfs", "create", "-s", "-V", "4m", f"{small.container}/work/more")
    elif how == "snapshots of scratch":
        sh("zfs", "snapshot", f"{small.container}/lost/volatile@x")
    elif how == "claimed":
        sh("zfs", "set", f"{naming.CLAIM}=another", small.container)
    else:
        text = small.xml.read_text()
        text = {
            "vid": text.replace(f"{small.container}/work/p", "elsewhere/p"),
            "no such pool": text.replace(f'"{POOL}"', '"x"'),
            "another driver": text.replace('"zfs"', '"lvm_thin"'),
        }[how]
        small.xml.write_text(text)
    before, text = small.datasets(), small.xml.read_bytes()
    with held:
        assert small("--apply") == 1
    assert why in capsys.readouterr().err
    assert (small.datasets(), small.xml.read_bytes()) == (before, text)


def test_adopt_does_not_overwrite_a_changed_qubes_xml(small, monkeypatch):
    done = adopt._carry_out

    async def slow(plan):
        await done(plan)
        small.xml.write_bytes(small.xml.read_bytes() + b"<!-- newer -->\n")

    with monkeypatch.context() as patch:
        patch.setattr(adopt, "_carry_out", slow)
        assert small("--apply") == 1
    assert 'driver="zfs"' in small.xml.read_text()
    assert small("--apply") == 0
    pool, _ = small.adopted()
    assert len(pool.list_volumes()) == 3
    assert Path(small.xml).stat().st_mode & 0o777 == 0o660


# --- the older layout


class Older(ByHand):
    """Create one zvol per volume, with no snapshots, not hidden from dom0."""

    def __init__(self, container, old):
        self.container, self.old = container, old

    def path(self, qube, name):
        dataset = f"{self.old}/{qube}/{name}"
        return asyncio.run(devices.wait_for_link(dataset))

    def create(self, qube, name, *, kept=True):
        dataset = f"{self.old}/{qube}"
        if not sh("zfs", "list", dataset, check=False):
            sh("zfs", "create", "-o", "canmount=off", dataset)
        sh("zfs", "create", "-s", "-V", "4m", f"{dataset}/{name}")


def older_world(container, old, driver, options, tmp_path, monkeypatch):
    world = World(Older(container, old), tmp_path, monkeypatch)
    world.driver, world.options = driver, options
    sh("zfs", "create", f"{container}/import")
    for qube, content in ("one", b"ONE"), ("two", b"TWO"):
        for name in "private", "volatile":
            world.made.create(qube, name)
            world.has(qube, "AppVM", name, "scratch")
            attributes = world.volumes[-1][2]
            attributes["vid"] = f"{old}/{qube}/{name}"
        write(world.made.path(qube, "private"), content)
    world.write_xml()
    world.learn(("one", "private"), ("two", "private"))
    return world


@pytest.fixture(params=["zvol", "encrypted below vm", "encrypted"])
def older(zpool, tmp_path, monkeypatch, request):
    if request.param == "zvol":
        # pools of that layout were zpools; the tool treats a container alike
        container = f"{zpool}/old-{tmp_path.name}"
        sh("zfs", "create", "-o", "mountpoint=none", container)
        sh("zfs", "create", "-o", "canmount=off", f"{container}/vm")
        where = {"container": container, "zfs_ns": container}
        return ZfsZvolPool, older_world(
            *(container, f"{container}/vm", "zfs_zvol", where),
            *(tmp_path, monkeypatch),
        )
    above = f"{zpool}/old-{tmp_path.name}"
    container = f"{above}/encryption/{POOL}"
    sh("zfs", "create", above)
    create_encrypted(container, POOL)
    for name in [naming.CLAIM, *ROOT_SETTINGS]:
        sh("zfs", "inherit", name, container)
    old = container
    if request.param != "encrypted":
        old = f"{container}/vm"
        sh("zfs", "create", "-o", "canmount=off", old)
    where = {"zpool_name": above, "zfs_ns": container}
    return ZfsEncryptedPool, older_world(
        *(container, old, "zfs_encrypted", where), *(tmp_path, monkeypatch)
    )


def test_older_layout_is_migrated_and_undone(older, monkeypatch):
    kind, world = older
    before, text = world.datasets(), attributes_of(world.xml)
    assert killed_at_each(world, monkeypatch, "--apply") > 2
    pool, volumes = world.adopted(kind)
    assert sorted(v.vid for v in pool.list_volumes()) == [
        "one/private",
        "two/private",
    ]
    assert killed_at_each(world, monkeypatch, "--undo", "--apply") > 2
    assert world.datasets() == before and attributes_of(world.xml) == text
    assert world("--apply") == 0
    pool, volumes = world.adopted(kind)
    for (qube, name), content in world.kept.items():
        volume = volumes[f"{qube}/{name}"]
        assert run(volume.verify()) and not volume.is_dirty()
        assert volume.save_on_stop and volume.revisions == {}
        assert digest(node(volume)) == content
        got = sh("zfs", "get", "-Ho", "value", "volmode", volume.dataset)
        assert got == "dev"
    one = volumes["one/private"]
    run(one.start())
    write(one.path, b"more")
    run(one.stop())
    assert read(node(one)) == b"more" and list(one.revisions) == ["r1"]
    run(one.revert())
    assert digest(node(one)) == world.kept["one", "private"]
    assert world("--undo", "--apply") == 1


def attributes_of(file):
    root = ElementTree.fromstring(file.read_bytes())
    return [
        (each.tag, sorted(each.items()), (each.text or "").strip())
        for each in root.iter()
    ]


# --- the tool does not trust records on the disk


EVIL = [
    ("", '{"was": "zfs", "old": "", "set": {"canmount": "on"}}'),
    ("", '{"was": "zfs", "old": "", "set": {"mountpoint": "/etc"}}'),
    ("", '{"was": "older", "old": "vm", "set": {}}'),
    ("/vm/work", '{"private": {"pool": "other", "vid": "sys/private"}}'),
    ("/vm/work", '{"private": {"source": "sys/root", "rw": "True"}}'),
    ("/vm/work/private@r1", "mine"),
    ("/vm/work/private@r1", "\x1b]0;x\x07\n\t"),
]


def test_undo_rejects_forged_records_on_disk(small, capsys):
    assert small("--apply") == 0
    good = {}
    for inside, evil in EVIL:
        dataset = small.container + inside
        get = "zfs", "get", "-Ho", "value", naming.MIGRATED, dataset
        good.setdefault(dataset, sh(*get))
        sh("zfs", "set", f"{naming.MIGRATED}={evil}", dataset)
        before, text = small.datasets(), small.xml.read_bytes()
        capsys.readouterr()
        assert small("--undo", "--apply") == 1
        said = capsys.readouterr().err
        assert dataset in said and "nothing was changed" in said
        assert said.replace("\n", "").isprintable()
        assert (small.datasets(), small.xml.read_bytes()) == (before, text)
        sh("zfs", "set", f"{naming.MIGRATED}={good[dataset]}", dataset)
    assert small("--undo") == 0
    shown = capsys.readouterr().out
    assert f"{small.xml}: pool {POOL}: set driver=zfs\n" in shown
    assert f"vid={small.container}/work/private\n" in shown


def test_adopt_refuses_a_pool_that_the_driver_would_refuse(small, capsys):
    before, moved = f"{small.container}/work", f"{small.container}/vm/work"
    sh("zfs", "set", "canmount=noauto", before)
    sh("zfs", "set", "mountpoint=/tmp/theirs", before)
    text = small.xml.read_bytes()
    assert small("--apply") == 1
    said = capsys.readouterr().err
    assert f"the pool {POOL} was not migrated: {moved} has mountpoint=" in said
    assert small.xml.read_bytes() == text
    sh("zfs", "inherit", "mountpoint", moved)
    assert small("--apply") == 0
    assert small.xml.read_bytes() != text


def test_undo_works_without_a_record_in_dom0(small):
    """The tool can derive all attributes of upstream's layout."""
    before, text = small.datasets(), small.xml.read_bytes()
    assert small("--apply") == 0
    saved.delete(POOL)
    assert small("--undo", "--apply") == 0
    assert (small.datasets(), small.xml.read_bytes()) == (before, text)


def test_undo_takes_attributes_from_the_record_in_dom0(
    zpool, tmp_path, monkeypatch, capsys
):
    container = f"{zpool}/old-{tmp_path.name}"
    sh("zfs", "create", "-o", "mountpoint=none", container)
    sh("zfs", "create", "-o", "canmount=off", f"{container}/vm")
    world = older_world(
        *(container, f"{container}/vm", "zfs_zvol"),
        *({"container": container}, tmp_path, monkeypatch),
    )
    text = attributes_of(world.xml)
    assert world("--apply") == 0
    guid = sh("zpool", "get", "-Hpo", "value", "guid", zpool)
    assert f'zpool_guid="{guid}"' in world.xml.read_text()
    forged = '{"private": {"save_on_stop": "True", "snap_on_start": "True"}}'
    sh("zfs", "set", f"{naming.MIGRATED}={forged}", f"{container}/vm/one")
    record = saved.load(POOL)
    saved.delete(POOL)
    assert world("--undo", "--apply") == 1
    assert "dom0 has no record of the migration" in capsys.readouterr().err
    saved.save(record)
    xml = world.xml.read_text()
    world.xml.write_text(xml.replace(guid, "1"))
    assert world("--undo", "--apply") == 1
    assert "has the GUID" in capsys.readouterr().err
    world.xml.write_text(xml)
    layout = sh("zfs", "get", "-Ho", "value", naming.MIGRATED, container)
    other = {**json.loads(layout), "set": {"volmode": "none"}}
    assert other["set"] != record.settings
    assert record.settings == json.loads(layout)["set"]
    forged = f"{naming.MIGRATED}={json.dumps(other)}"
    sh("zfs", "set", forged, container)
    assert world("--undo", "--apply") == 1
    assert "is not what dom0 recorded" in capsys.readouterr().err
    sh("zfs", "set", f"{naming.MIGRATED}={layout}", container)
    assert world("--undo", "--apply") == 0
    assert attributes_of(world.xml) == text
    assert saved.load(POOL) is None
