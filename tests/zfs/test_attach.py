# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs attach and detach, with disks that are connected and removed."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver import keytimer
from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import commands, importexport, keys

from ..support.lab import EncryptedLab, Lab, configure
from ..support.sticks import (
    INHIBIT,
    another_machines,
    change,
    guid,
    make,
    no_node_appears,
    prop,
)
from ..support.tool import COMMAND, qvm_zfs, refused
from ..support.zpools import MIB, export_zpool, read, sh, write

pytestmark = pytest.mark.side_b

#: replaces the package qubesadmin
QUBESADMIN = """
import json, os, types
class Qubes:
    def __init__(self):
        told = json.loads(os.environ["QUBESD"])
        self.pools = {c["name"]: types.SimpleNamespace(config=c, **{
            k: c[k] for k in ("name", "driver")}) for c in told["pools"]}
        self.domains = [types.SimpleNamespace(name=name, klass="AppVM",
            is_halted=lambda: False, volumes={"private":
            types.SimpleNamespace(pool=pool)})
            for name, pool in told["running"].items()]
"""


@pytest.fixture(params=[Lab, EncryptedLab])
def either(request, disks, person):
    disks.zpool("a")
    return make(request.param, disks)


# --- detach and attach


def test_pool_works_after_detach_and_attach(either, disks):
    lab, name = either, either.name
    volume = lab.private(content=b"data")
    assert qvm_zfs("detach", name) == (
        0,
        f"{name} is detached\n"
        "to close its LUKS device, run 'sudo cryptsetup close stick-a'\n",
        "",
    )
    assert importexport.guid("stick") is None
    assert qvm_zfs("detach", name)[:2] == (0, f"{name} is already detached\n")
    assert lab.pool.size is None and lab.pool.usage is None
    with pytest.raises(StoragePoolException, match="'sudo qvm-zfs attach'"):
        lab.run(volume.start())
    disks.take_away("a")
    assert "was not found on the disks of dom0" in refused("attach", name)
    disks.connect("a")
    assert qvm_zfs("attach", name) == (0, f"{name} is attached\n", "")
    assert prop("cachefile") == "none"
    assert prop("altroot").startswith("/run/qubes-storage-zfs/")
    if lab.kind is ZfsEncryptedPool:
        assert lab.is_locked()
    assert lab.content(volume) == b"data" and lab.pool.size > 0
    lab.session(volume, b"more")
    assert lab.content(volume) == b"more"
    assert qvm_zfs("attach", name)[:2] == (0, f"{name} is already attached\n")


def test_guid_is_recorded_and_is_no_option(either):
    lab = either
    noted = {"zpool_guid": guid()}
    assert lab.pool.config.items() >= noted.items()
    text = {name: str(value) for name, value in lab.pool.config.items()}
    driver = text.pop("driver")
    assert lab.kind(**text).config.items() >= noted.items()
    assert lab.kind.driver == driver
    for kind in ZfsZvolPool, ZfsEncryptedPool:
        assert "zpool_guid" not in inspect.signature(kind.__init__).parameters


def test_zpool_on_luks_is_detached_and_attached(disks):
    key_file = Path("/tmp/stick.key")
    key_file.write_bytes(os.urandom(32))
    cheap = "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"
    part = "/dev/vde"
    sh("cryptsetup", "luksFormat", "-q", *cheap, part, str(key_file))
    unlock = "cryptsetup", "open", f"--key-file={key_file}", part, "luks-stick"
    sh(*unlock)
    opened = "/dev/mapper/luks-stick"
    size = int(sh("blockdev", "--getsize64", opened))
    for start in 0, size - MIB:
        sh("blkdiscard", "-z", "-o", str(start), "-l", str(MIB), opened)
    pool = ZfsZvolPool(name="stick", block_devices=opened)
    lab = Lab.__new__(Lab)
    lab.container, lab.name, lab.pool = "stick", "stick", pool
    try:
        lab.run(pool.setup())
        configure(pool.config)
        volume = lab.private(content=b"data")
        assert "cryptsetup close luks-stick" in qvm_zfs("detach", "stick")[1]
        sh("cryptsetup", "close", "luks-stick")
        assert "cryptsetup open" in refused("attach", "stick")
        sh(*unlock)
        assert qvm_zfs("attach", "stick")[0] == 0
        assert lab.content(volume) == b"data"
        assert part not in importexport.block_devices()
        assert qvm_zfs("detach", "stick")[0] == 0
    finally:
        subprocess.run(["zpool", "destroy", "-f", "stick"], check=False)
        sh("udevadm", "settle")
        sh("cryptsetup", "close", "luks-stick", check=False)
        sh("blkdiscard", "-q", "-f", "-z", part)


def test_detach_succeeds_while_qubesd_lists_volumes(either, monkeypatch):
    lab = either
    monkeypatch.setattr(keytimer, "CHECK_INTERVAL", 0.02)
    volume = lab.private(content=b"data")

    async def tool(*arguments):
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 0, err

    async def daemon():
        while True:
            assert lab.pool.list_volumes() is not None
            await asyncio.sleep(0.05)

    async def story():
        looking = asyncio.create_task(daemon())
        await lab.pool.first_use()
        await volume.start()
        write(volume.path, b"more")
        await volume.stop()
        await tool("detach", lab.name)
        with pytest.raises(StoragePoolException, match="not imported"):
            await volume.start()
        await tool("attach", lab.name)
        await lab.pool.unlock()
        await volume.start()
        assert read(volume.path) == b"more"
        await volume.stop()
        looking.cancel()

    lab.run(story())


def test_pools_in_one_zpool_are_attached_and_detached_together(stick, disks):
    other = Lab("stick")
    sh("zfs", "create", "-s", "-V", "16M", "stick/mine")
    configure(stick.pool.config, other.pool.config)
    volume = other.private(content=b"data")
    _, out, _ = qvm_zfs("detach", stick.name)
    assert f"{stick.name} is detached, together with {other.name}" in out
    code, out, err = qvm_zfs("attach", stick.name)
    assert (code, err) == (0, "")
    assert "1 volume in stick belongs to no qube and has no device" in out
    assert f"{stick.name} is attached, together with {other.name}" in out
    sh("udevadm", "settle")
    assert not os.path.exists("/dev/zvol/stick/mine")
    assert other.content(volume) == b"data"
    # one pool was released, but qubesd still lists it
    assert qvm_zfs("detach", stick.name)[0] == 0
    sh("zpool", "import", "-N", "-d", "/dev/mapper", "stick")
    sh("zfs", "inherit", "qubes-storage-zfs:pool", other.container)
    export_zpool("stick")
    assert qvm_zfs("attach", stick.name)[1].endswith(
        f"{stick.name} is attached\n"
    )


# --- the zpool is identified by its GUID


def test_attach_and_detach_refuse_another_zpool_of_the_same_name(stick, disks):
    right = guid()
    export_zpool("stick")
    disks.take_away("a")
    disks.zpool("b")
    wrong = guid()
    for verb in "attach", "detach":
        said = refused(verb, stick.name)
        assert f"with the GUID {right}" in said and wrong in said, verb
    export_zpool("stick")
    said = refused("attach", stick.name)
    assert f"with the GUID {right}" in said and wrong in said
    assert importexport.guid("stick") is None
    disks.connect("a")
    assert qvm_zfs("attach", stick.name)[0] == 0
    assert guid() == right


def test_pool_without_a_recorded_guid_is_attached_if_its_zpool_is_unique(
    stick, disks
):
    config = {**stick.pool.config}
    right = config.pop("zpool_guid")
    configure(config)
    assert qvm_zfs("detach", stick.name)[0] == 0
    code, out, _ = qvm_zfs("attach", stick.name)
    assert code == 0 and "does not record the GUID" in out and guid() == right
    export_zpool("stick")
    disks.zpool("b")
    wrong = guid()
    export_zpool("stick")
    said = refused("attach", stick.name)
    assert (
        "several zpools have the name stick" in said
        and right in said
        and wrong in said
    )
    assert importexport.guid("stick") is None


def test_zpool_of_another_system_needs_force(stick, disks):
    with another_machines(disks):
        said = refused("attach", stick.name)
        assert "another system used the zpool stick last" in said
        assert " -f" not in said and importexport.guid("stick") is None
        assert qvm_zfs("attach", "--force", stick.name)[0] == 0


def test_attach_names_missing_disks(disks):
    disks.zpool("a", "b")
    lab = make(Lab, disks)
    export_zpool("stick")
    disks.take_away("b")
    said = refused("attach", lab.name)
    assert "cannot be imported" in said and "stick-b (UNAVAIL" in said
    disks.connect("b")
    assert qvm_zfs("attach", lab.name)[0] == 0


def test_degraded_mirror_is_attached_with_a_warning(disks):
    disks.zpool("a", "b", kind=["mirror"])
    lab = make(Lab, disks)
    volume = lab.private(content=b"data")
    export_zpool("stick")
    disks.take_away("b")
    code, out, err = qvm_zfs("attach", lab.name)
    assert (code, out) == (0, f"{lab.name} is attached\n")
    assert err.startswith("stick is DEGRADED: ") and "stick-b" in err
    assert lab.content(volume) == b"data"


def test_unknown_pool_is_refused(disks):
    configure()
    assert "qubesd has no ZFS pool nothing" in refused("attach", "nothing")
    assert "there is no ZFS pool nothing" in refused("detach", "nothing")


# --- changes made to a disk while it was detached


@pytest.mark.parametrize(
    "where, value",
    [
        ("work/private", "volmode=full"),
        ("work/private", "snapdev=visible"),
        ("work", "org.qubes-os:part-of-qvm-pool=false"),
        ("", "volmode=default"),
        ("", "org.qubes-os:part-of-qvm-pool=false"),
    ],
)
def test_attach_refuses_volumes_that_dom0_would_scan(stick, where, value):
    stick.private(content=b"data")
    name, _, wrong = value.partition("=")
    dataset = f"{stick.pool.qubes_root}/{where}".rstrip("/")
    change(stick, ["zfs", "set", value, dataset])
    with no_node_appears():
        said = refused("attach", stick.name)
    assert f"{dataset} has {name}={wrong} instead of " in said
    assert importexport.guid("stick") is None
    assert INHIBIT.read_text() == "0\n"


def test_attach_repair_imports_without_devices(stick):
    volume = stick.private(content=b"data")
    dataset = f"{stick.pool.qubes_root}/work/private"
    change(stick, ["zfs", "set", "snapdev=visible", dataset])
    with no_node_appears():
        code, out, err = qvm_zfs("attach", "--repair", stick.name)
        assert (code, err) == (0, "") and f"{dataset} has snapdev=" in out
        assert "stick is imported without devices;" in out
    with pytest.raises(StoragePoolException, match="has snapdev=visible"):
        stick.run(volume.start())
    sh("zfs", "inherit", "snapdev", dataset)
    said = f"{stick.name} is already attached\n"
    assert qvm_zfs("attach", stick.name)[:2] == (0, said)
    assert os.path.exists(volume.path)
    assert stick.content(volume) == b"data"


def test_attach_checks_a_zpool_imported_by_hand(stick):
    stick.private(content=b"data")
    name, dataset = naming.UDEV_FLAG, f"{stick.pool.qubes_root}/work"
    sh("zfs", "set", f"{name}=false", dataset)
    assert f"{dataset} has {name}=false" in refused("attach", stick.name)
    assert importexport.guid("stick")
    sh("zfs", "inherit", name, dataset)
    said = f"{stick.name} is already attached\n"
    assert qvm_zfs("attach", stick.name)[:2] == (0, said)


def test_no_node_appears_detects_nodes(stick):
    stick.private(content=b"data")
    export_zpool("stick")
    with pytest.raises(AssertionError), no_node_appears():
        sh("zpool", "import", "-N", "-d", "/dev/mapper", "stick")


def test_attach_refuses_a_pool_that_was_claimed_or_renamed(stick):
    mark = "qubes-storage-zfs:pool=x"
    change(stick, ["zfs", "set", mark, stick.container])
    assert "belongs to the pool x" in refused("attach", stick.name)
    assert importexport.guid("stick") is None
    change(stick, ["zfs", "rename", stick.container, "stick/renamed"])
    assert "does not exist; if it was renamed" in refused("attach", stick.name)
    assert importexport.guid("stick") is None


def test_attach_refuses_an_encrypted_pool_with_altered_encryption(
    disks, person
):
    disks.zpool("a")
    lab = make(EncryptedLab, disks)
    plain = f"{lab.container}/work"
    change(lab, ["zfs", "create", "-u", "-o", "encryption=off", plain])
    assert f"{plain} has encryptionroot=- instead of " in refused(
        "attach", lab.name
    )
    location = "keylocation=file:///etc/passwd"
    change(
        lab,
        ["zfs", "destroy", plain],
        ["zfs", "set", location, lab.container],
    )
    assert "has keylocation=file:///etc" in refused("attach", lab.name)
    assert importexport.guid("stick") is None


def test_volume_created_during_an_attach_gets_its_node(lab):
    volume = lab.private("meanwhile")

    async def story():
        async with importexport.no_new_nodes():
            assert INHIBIT.read_text() == "1\n"
            making = asyncio.create_task(lab.volume("new").start())
            await asyncio.sleep(2)
            await volume.remove()
        await making

    lab.run(story())
    assert INHIBIT.read_text() == "0\n"
    again = lab.private("meanwhile", b"again")
    assert lab.content(again) == b"again"


def test_killed_attach_does_not_block_device_nodes(lab):
    """The next operation that waits for a node restores the setting.

    It does so only once the process that changed the setting has exited.
    """
    program = (
        "import asyncio, sys\n"
        "from qubes_storage_zfs.zfs import importexport\n"
        "async def hold():\n"
        "    async with importexport.no_new_nodes():\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(hold())\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        commands._end_inhibition()
        assert INHIBIT.read_text().strip() == "1"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert INHIBIT.read_text().strip() == "1"
    volume = lab.volatile()
    lab.start(volume)
    assert INHIBIT.read_text().strip() == "0" and read(volume.path) == b""
    lab.stop(volume)


def test_signal_restores_zvol_inhibit_dev():
    async def story():
        async with importexport.no_new_nodes():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(story())
    assert INHIBIT.read_text() == "0\n"


# --- refusals while something is in use


def in_use(lab, env=None):
    said = refused("detach", lab.name, env=env)
    assert importexport.guid("stick") is not None
    assert "is in use: " in said
    if lab.kind is ZfsEncryptedPool:
        assert lab.run(keys.state(lab.container)).loaded
    return said


def test_detach_is_refused_while_a_qube_runs(either, tmp_path):
    (tmp_path / "qubesadmin.py").write_text(QUBESADMIN)
    told = {"pools": [either.pool.config], "running": {"work": either.name}}
    told["pools"] = [{k: str(v) for k, v in either.pool.config.items()}]
    env = {"PYTHONPATH": str(tmp_path), "QUBESD": json.dumps(told)}
    assert "the qube work is running" in in_use(either, env)
    told["running"] = {"work": "another"}
    env["QUBESD"] = json.dumps(told)
    assert qvm_zfs("detach", either.name, env=env)[0] == 0
    assert qvm_zfs("attach", either.name, env=env)[0] == 0


def test_detach_is_refused_while_a_volume_is_open(either):
    volume = either.private(content=b"data")
    with open(volume.path, "rb"):
        said = in_use(either)
        assert f"{volume.dataset} is in use by process {os.getpid()}" in said
    assert qvm_zfs("detach", either.name)[0] == 0


def test_detach_is_refused_during_an_export_or_import(either):
    volume = either.private(content=b"data")
    path = either.run(volume.export())
    said = in_use(either)
    assert f"an export or import uses {path[10:]}" in said
    either.run(volume.export_end(path))
    target = either.run(volume.import_data(volume.size))
    assert "an export or import uses" in in_use(either), target
    either.run(volume.import_data_end(False))
    assert qvm_zfs("detach", either.name)[0] == 0


def test_detach_is_refused_while_other_datasets_are_in_use(stick, tmp_path):
    sh("zfs", "create", "-o", f"mountpoint={tmp_path}", "stick/files")
    assert f"{tmp_path} is mounted" in in_use(stick)
    sh("zfs", "unmount", "stick/files")
    sh("zfs", "create", "-s", "-V", "16M", "stick/mine")
    sh("udevadm", "settle")
    sh(
        "dmsetup",
        "create",
        "on-mine",
        "--table=0 8 linear /dev/zvol/stick/mine 0",
    )
    try:
        assert "stick/mine is in use by on-mine" in in_use(stick)
    finally:
        sh("dmsetup", "remove", "--retry", "on-mine")
    assert qvm_zfs("detach", stick.name)[0] == 0


def test_failed_export_of_the_zpool_reports_the_reason(disks, person):
    """The mount is visible to another process only."""
    disks.zpool("a")
    lab = make(EncryptedLab, disks)
    sh("zfs", "create", "-o", "mountpoint=legacy", "stick/files")
    where = Path("/tmp/stick-mount")
    where.mkdir(exist_ok=True)
    script = f"mount -t zfs stick/files {where} && echo on && exec sleep 60"
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as hidden:
        hidden.stdout.readline()
        said = refused("detach", lab.name)
        assert "is still imported, and its keys are unloaded" in said
        assert "busy" in said and "-f" not in said
        hidden.kill()


def test_slow_step_prints_a_message(monkeypatch, capfd):
    monkeypatch.setattr(common, "SILENCE", 0.1)

    async def story():
        async with common.slow("Counting"):
            await asyncio.sleep(0.3)
        async with common.slow("Not this"):
            pass
        await asyncio.sleep(0.3)

    asyncio.run(story())
    assert capfd.readouterr().err == "Counting ...\n"
