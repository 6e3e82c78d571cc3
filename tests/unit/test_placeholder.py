# SPDX-License-Identifier: BSD-2-Clause
"""With a broken package, qubesd runs and keeps the entries of its pools."""

import asyncio
import inspect
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import lxml.etree
import pytest
import qubes.exc
import qubes.storage

from qubes_storage_zfs.driver import events, extension, placeholder

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qubes_storage_zfs"

#: a qubesd with two absent pools of this package and a pool of another driver;
#: it creates or loads the qube "work" in the former and "other" in the latter
QUBESD = """
import asyncio, logging, os, sys
where, store, phase = sys.argv[1:4]
sys.modules["libzfs_core"] = None
import qubes, qubes.exc, qubes.ext, qubes.storage, hostapi, memory_driver
qubes.storage.VOLUME_STATE_DIR = memory_driver.MemoryPool.folder = where
import qubes_storage_zfs, qubes_storage_zfs.driver.extension as ours
logging.disable(logging.CRITICAL)
hostapi.register_driver("memory", memory_driver.MemoryPool)
for driver, name in {
    "zfs_zvol": "ZfsZvolPool", "zfs_encrypted": "ZfsEncryptedPool"
}.items():
    hostapi.register_driver(driver, getattr(qubes_storage_zfs, name))
qubes.ext.register_extension(ours.PoolExtension)

async def make():
    app = hostapi.new_app(store)
    for name, driver, options in (
        ("mem", "memory", {"colour": "red"}),
        ("ours", "zfs_zvol", {"container": "tank/q", "newer": "x"}),
        ("safe", "zfs_encrypted", {"zpool_name": "tank"}),
    ):
        app.pools[name] = app._get_pool(name=name, driver=driver, **options)
    app.default_pool = app.pools["mem"]
    await hostapi.create_vm(app, "TemplateVM", "base")
    await hostapi.create_vm(app, "AppVM", "other", template="base")
    app.default_pool = app.pools["ours"]
    for kind, name, options in (
        ("TemplateVM", "tmpl", {}), ("AppVM", "work", {"template": "tmpl"})
    ):
        qube = app.add_new_vm(kind, name=name, label="red", **options)
        os.makedirs(qube.dir_path)
        qube.tags.add("zfs-pool-ours")
    app.save()

async def live():
    app = await hostapi.restart(qubes.Qubes(store))
    for name in app.pools:
        hostapi.pool_info(app, name)
    assert list(app.pools["ours"].volumes.keys()) == []
    for qube in list(app.domains)[1:]:
        for volume in qube.volumes.values():
            hostapi.volume_info(qube, volume.name)
            assert volume.revisions is not None
    await app.domains["other"].start()
    await app.domains["other"].shutdown()
    try:
        await app.domains["work"].start()
    except qubes.exc.QubesException as exc:
        print(str(exc) % ())
    app.domains["other"].features["zfs.compression"] = "off"
    app.domains["other"].tags.add("mine")
    await hostapi.remove_vm(app.domains["other"])
    app.save()

asyncio.run(make() if phase == "make" else live())
"""


def qubesd(package, folder, phase):
    """Run a phase of QUBESD; return its output."""
    path = [package.parent, ROOT / "tests/host"]
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            QUBESD,
            folder,
            folder / "qubes.xml",
            phase,
        ],
        env={**os.environ, "PYTHONPATH": ":".join(map(str, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(folder):
    """Return elements of qubes.xml: pools, and volumes and tags of our qubes."""
    tree = lxml.etree.parse(folder / "qubes.xml")
    return [
        dict(node.attrib)
        for kind in ("pool", "volume", "tag")
        for node in tree.iter(kind)
        if not {"mem", "created-by-dom0"} & set(node.attrib.values())
    ]


@pytest.mark.skipif(
    not hasattr(qubes.storage, "placeholder"),
    reason="a real qubes package is used",
)
@pytest.mark.parametrize(
    "file, text, reason",
    [
        (None, "", "python3-pyzfs is not installed"),
        ("driver/volume.py", "def (", "reinstall the package"),
        ("zfs/lzc.py", None, "reinstall the package"),
        ("zfs/programs", None, "reinstall the package"),
        ("driver/pool.py", "raise RuntimeError('100% broken')", "100% broken"),
        ("driver/encrypted.py", "1 / 0", "python3-pyzfs is not installed"),
        ("driver/events.py", "1 / 0", "python3-pyzfs is not installed"),
    ],
)
def test_qubesd_runs_with_a_broken_package(tmp_path, file, text, reason):
    package = tmp_path / "lib" / PACKAGE.name
    shutil.copytree(PACKAGE, package)
    qubesd(package, tmp_path, "make")
    before = lines(tmp_path)
    assert any(line.get("newer") == "x" for line in before)
    if file is not None:
        broken_file = package / file
        if text is not None:
            broken_file.write_text(text)
        elif broken_file.is_dir():
            shutil.rmtree(broken_file)
        else:
            broken_file.unlink()
    assert reason in qubesd(package, tmp_path, "live")
    assert lines(tmp_path) == before


def test_a_placeholder_refuses_operations_with_the_reason():
    cls = placeholder.pool_class("zfs_zvol", ImportError("no 50% of it"))
    pool = cls(name="p", container="tank/q", revisions_to_keep="many")
    reason = r"zfs_zvol cannot be loaded .* \(ImportError: no 50%% of it\); reinstall"
    with pytest.raises(qubes.exc.QubesException, match=reason):
        asyncio.run(pool.setup())
    qube = types.SimpleNamespace(name="work")
    volume = pool.init_volume(
        qube, {"name": "private", "size": "x", "save_on_stop": True}
    )
    assert volume.size == 0 and not volume.is_dirty() and not volume.revisions
    assert asyncio.run(volume.stop()) is volume
    operations = "verify start create remove revert export import_data".split()
    for operation in operations:
        with pytest.raises(qubes.exc.QubesException, match=reason):
            asyncio.run(getattr(volume, operation)())


def handlers():
    return [
        function
        for function in vars(extension.PoolExtension).values()
        if hasattr(function, "ha_events")
    ]


def fire(function, error, monkeypatch):
    """Fire the event of *function*; all functions of events.py raise *error*."""

    def fail(*_args, **_kwargs):
        raise error

    for name, value in vars(events).items():
        if inspect.isfunction(value):
            monkeypatch.setattr(events, name, fail)
    qube = types.SimpleNamespace(name="work")
    arguments = {"feature": "zfs.x", "value": "y", "vm": qube}
    result = function(None, qube, function.ha_events[0], **arguments)
    if inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.parametrize("function", handlers(), ids=lambda f: f.__name__)
def test_a_failed_handler_is_only_logged(function, monkeypatch, caplog):
    fire(function, RuntimeError("ours"), monkeypatch)
    assert "ours" in caplog.text


def test_only_three_handlers_refuse(monkeypatch):
    refusing = []
    for function in handlers():
        try:
            fire(function, qubes.exc.QubesException("no"), monkeypatch)
        except qubes.exc.QubesException:
            refusing.append(function.__name__)
    assert sorted(refusing) == ["on_feature", "on_pre_start", "on_removal"]
