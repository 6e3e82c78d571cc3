# SPDX-License-Identifier: BSD-2-Clause
"""Pools: options, containers and the properties of their datasets."""

import subprocess

import pytest
from qubes.exc import QubesValueError, StoragePoolException

from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.zfs import lzc, probe, runtime

from ..support.lab import Lab
from ..support.zpools import MIB, read, sh


@pytest.fixture(scope="module")
def another(zpool):
    """Return a pool for tests that change no pool."""
    return Lab(zpool)


def all_but_other_tests_volumes(lab):
    every = sh("zfs", "list", "-Hd", "2", "-o", "name")
    return every, lab.datasets()


def refused(lab, name, match, **options):
    before = all_but_other_tests_volumes(lab)
    with pytest.raises(StoragePoolException, match=match) as caught:
        lab.add(name, **options)
    assert all_but_other_tests_volumes(lab) == before
    # the client formats the text with the % operator
    assert str(caught.value) % () == str(caught.value).replace("%%", "%")
    return str(caught.value)


def prop(dataset, name):
    return sh("zfs", "get", "-Ho", "value", name, dataset)


def test_new_container_has_safe_properties(lab):
    volume = lab.private()
    for dataset in f"{lab.container}/vm", volume.dataset:
        assert prop(dataset, "volmode") == "dev"
        assert prop(dataset, "snapdev") == "hidden"
        assert prop(dataset, "org.qubes-os:part-of-qvm-pool") == "true"
        assert prop(dataset, "com.sun:auto-snapshot") == "false"
    assert prop(f"{lab.container}/vm", "mounted") == "no"
    assert prop(volume.dataset, "volblocksize") == "16K"
    assert prop(volume.dataset, "refreservation") == "none"


def test_options_of_a_pool_apply_to_its_volumes(make_lab):
    lab = make_lab(volblocksize="8k", compression="zstd-3")
    volume = lab.private(size=100000)
    assert prop(volume.dataset, "volblocksize") == "8K"
    assert prop(volume.dataset, "compression") == "zstd-3"
    assert volume.size == 106496


def test_existing_dataset_keeps_its_properties_as_a_container(zpool):
    sh("zfs", "create", f"{zpool}/mine")
    sh("zfs", "create", f"{zpool}/mine/data")

    def native():
        return [prop(f"{zpool}/mine", n) for n in ("mountpoint", "volmode")]

    before = native()
    lab = Lab(zpool)
    pool = lab.add("in-mine", container=f"{zpool}/mine")
    assert before == native()
    assert prop(f"{zpool}/mine/vm", "volmode") == "dev"
    lab.run(pool.destroy())
    assert prop(f"{zpool}/mine", "qubes-storage-zfs:pool") == "-"
    assert prop(f"{zpool}/mine/data", "type") == "filesystem"


def test_container_is_added_again_only_under_its_name(lab):
    volume = lab.private(content=b"data")
    refused(
        lab, "other", f"belongs to the pool {lab.name}", container=lab.container
    )
    lab.restart()
    lab.pool = lab.add(lab.name, container=lab.container)
    assert lab.content(lab.again(volume)) == b"data"


def test_operations_refuse_a_container_of_another_pool(lab):
    volume = lab.private(content=b"data")
    sh("zfs", "set", "qubes-storage-zfs:pool=other", lab.container)
    with pytest.raises(StoragePoolException, match="belongs to the pool other"):
        lab.run(volume.start())
    sh("zfs", "inherit", "qubes-storage-zfs:pool", lab.container)
    with pytest.raises(StoragePoolException, match="not marked"):
        lab.run(volume.verify())


def test_missing_container_is_reported(lab):
    volume = lab.private()
    sh("zfs", "rename", lab.container, lab.container + "-x")
    with pytest.raises(StoragePoolException, match="does not exist"):
        lab.run(volume.start())
    lab.run(volume.stop())
    assert lab.pool.size is None
    sh("zfs", "rename", lab.container + "-x", lab.container)
    lab.start(volume)
    lab.stop(volume)


@pytest.mark.parametrize(
    "options, match",
    [
        ({}, "either container"),
        (
            {"container": "tank/a", "block_devices": "/dev/x"},
            "either container",
        ),
        ({"container": "tank/my qubes"}, "does not support the dataset name"),
        ({"container": "odd:pool/q"}, "does not support the zpool name"),
        ({"container": "tank/../x"}, "not a valid name for a ZFS dataset"),
        ({"container": "tank/a@b"}, "not a valid name for a ZFS dataset"),
        ({"container": "tank/%recv"}, "not a valid name for a ZFS dataset"),
        ({"container": ""}, "not a valid name for a ZFS dataset"),
        ({"container": "-f"}, "not a valid name for a zpool"),
        ({"container": "tank/" + "x" * 250}, "too long"),
        ({"container": "nowhere/x"}, "zpool nowhere is not imported"),
        ({"container": "tank/no/such"}, "does not exist; create it first"),
        (
            {"container": "tank/x", "revisions_to_keep": "-2"},
            "from -1 to 10000",
        ),
        (
            {"container": "tank/x", "revisions_to_keep": "many"},
            "from -1 to 10000",
        ),
        ({"container": "tank/x", "ephemeral_volatile": "maybe"}, "True or"),
        ({"container": "tank/x", "volblocksize": "3k"}, "power of two"),
        ({"container": "tank/x", "volblocksize": "1M"}, "power of two"),
        ({"container": "tank/x", "compression": "best"}, "compression must"),
        ({"container": "tank/x", "compression": "lz4\n"}, "compression must"),
        ({"container": "tank/x", "snap_on_start_forensics": "2"}, "True or"),
        ({"block_devices": "relative"}, "relative"),
        ({"block_devices": "/dev/nothing-here"}, "/dev/nothing-here"),
    ],
)
def test_add_refuses_invalid_options_without_changes(another, options, match):
    refused(another, "newpool", match, **options)


def test_add_refuses_a_volume_or_a_qubes_root_as_container(lab, zpool):
    volume = lab.private()
    refused(lab, "p", "is a volume, not", container=volume.dataset)
    refused(
        lab,
        "p",
        "inside the qubes root of another",
        container=f"{lab.container}/vm/q",
    )
    sh("zfs", "create", "-p", f"{zpool}/foreign/vm")
    refused(
        lab, "p", "not created by this driver", container=f"{zpool}/foreign"
    )


def test_failed_setup_leaves_no_dataset(lab, zpool, monkeypatch):
    create = lzc.create_filesystem

    async def failing(dataset, properties):
        if dataset.endswith("/vm"):
            raise lzc.errors.NoSpace(dataset, 28, "create")
        await create(dataset, properties)

    monkeypatch.setattr(lzc, "create_filesystem", failing)
    refused(lab, "p", "no space left", container=f"{zpool}/half")
    sh("zfs", "create", f"{zpool}/half2")
    refused(lab, "p", "no space left", container=f"{zpool}/half2")
    assert prop(f"{zpool}/half2", "qubes-storage-zfs:pool") == "-"


def test_setup_creates_a_zpool_from_block_devices():
    pool = ZfsZvolPool(name="fresh", block_devices="/dev/vdd")
    lab = Lab.__new__(Lab)
    lab.container, lab.name, lab.pool = "fresh", "fresh", pool
    lab.options = {"block_devices": "/dev/vdd"}
    try:
        lab.run(pool.setup())
        assert prop("fresh/vm", "compression") == "lz4"
        assert prop("fresh/vm", "volmode") == "dev"
        assert prop("fresh", "mountpoint") == "none"
        zpool = "autotrim,failmode"
        out = sh("zpool", "get", "-Ho", "value", zpool, "fresh")
        assert out.split() == ["on", "continue"]
        volume = lab.private(content=b"data")
        assert volume.dataset == "fresh/vm/work/private"
        refused(lab, "fresh", "container=fresh", block_devices="/dev/vdd")
        refused(lab, "other", "/dev/vdd", block_devices="/dev/vdd")
        lab.restart()
        assert lab.content(lab.again(volume)) == b"data"
    finally:
        subprocess.run(["zpool", "destroy", "-f", "fresh"], check=False)
        lab.run(probe.make_empty_again(["/dev/vdd"]))


def test_import_between_pools_of_one_zpool_clones(make_lab):
    one, two = make_lab(), make_lab()
    source = one.private("a", b"data")
    target = two.private("b")
    two.run(target.import_volume(source))
    assert two.content(target) == b"data"
    assert prop(target.dataset, "origin").startswith(one.container)
    one.run(source.remove())
    assert two.content(target) == b"data"
    two.run(target.remove())
    assert one.datasets() == ["vm"] and two.datasets() == ["vm"]


def test_copy_between_zpools_is_sparse(lab, tmp_path):
    disk = tmp_path / "second.img"
    with open(disk, "wb") as file:
        file.truncate(256 * MIB)
    sh("zpool", "create", "-m", "none", "second", str(disk))
    try:
        other = Lab("second")
        source = lab.private("a", b"data", size=64 * MIB)
        lab.session(source, b"beyond holes", 40 * MIB)
        target = other.private("b", b"old", revisions_to_keep=1)
        other.run(target.import_volume(source))
        assert other.content(target) == b"data"
        assert read(target.path, offset=40 * MIB) == b"beyond holes"
        assert target.size == 64 * MIB
        assert target.usage < MIB
        assert lab.datasets("volume") == ["vm/a/private"]
        other.run(target.revert())
        assert other.content(target) == b"old"
        sh("zfs", "set", "quota=1M", other.container)
        lab.session(source, bytes(range(256)) * 8 * 4096)
        with pytest.raises(StoragePoolException, match="bytes are free|only"):
            other.run(target.import_volume(source))
        assert other.content(target) == b"old"
    finally:
        subprocess.run(["zpool", "destroy", "-f", "second"], check=False)


def test_list_volumes_lists_only_volumes_on_disk(lab):
    """init_volume() is called for volumes that never exist."""
    lab.volume("phantom", save_on_stop=True)
    assert lab.pool.list_volumes() == []
    root = lab.private("tmpl", name="root")
    app = lab.clone_of(root)
    lab.start(app)
    volumes = lab.pool.list_volumes()
    assert [volume.vid for volume in volumes] == ["app/root", "tmpl/root"]
    assert volumes[1] is root
    lab.restart()
    unseen = {volume.vid: volume for volume in lab.pool.list_volumes()}
    assert unseen["tmpl/root"].save_on_stop
    assert not unseen["app/root"].save_on_stop
    assert "nobody/root" not in [v.vid for v in lab.pool.list_volumes()]
    with pytest.raises(KeyError):
        lab.pool.get_volume("nobody/root")


def test_revisions_to_keep_of_a_pool_can_be_set(lab):
    lab.pool.revisions_to_keep = 5
    assert lab.pool.config["revisions_to_keep"] == 5
    assert lab.volume(save_on_stop=True).revisions_to_keep == 5
    with pytest.raises(QubesValueError):
        lab.pool.revisions_to_keep = -2


def test_constructors_do_not_call_zfs(monkeypatch, lab):
    def fail(*_):
        raise RuntimeError("ZFS was asked")

    volume = lab.private()
    monkeypatch.setattr(lzc, "call", fail)
    runtime.restart()
    pool = ZfsZvolPool(
        name="p",
        container="bad name%",
        revisions_to_keep="many",
        ephemeral_volatile="perhaps",
        volblocksize="5",
        future="1",
    )
    assert pool.config["future"] == "1"
    assert pool.config["container"] == "bad name%"
    made = pool.init_volume(
        lab.vm("q"),
        {
            "name": "private",
            "save_on_stop": True,
            "rw": True,
            "size": "x",
            "revisions_to_keep": "y",
            "novel": "z",
        },
    )
    assert made.config["novel"] == "z"
    assert "p" in repr(pool) and "bad name%" in repr(pool)
    assert lab.again(volume).size == volume.size
