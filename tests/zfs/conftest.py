# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures on a real zpool; these tests run as root in the guest."""

import os
import platform
from pathlib import Path

import pytest
import qubes.storage

from qubes_storage_zfs import ZfsEncryptedPool, ZfsZvolPool
from qubes_storage_zfs.driver import keytimer, prompts
from qubes_storage_zfs.store import rundir
from qubes_storage_zfs.zfs import devices, lzc, threads

from ..support.lab import EncryptedLab, Lab
from ..support.prompts import Person
from ..support.report import core_admin_version, said
from ..support.sticks import make, parts_of_a_disk
from ..support.zpools import (
    DISK,
    MIB,
    ZPOOL,
    another_zpool,
    clear,
    create_zpool,
    sectors,
)

ran = {"zfs": 0}


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    # The documentation pages create a zpool of the same name, and the tools
    # list all pools. Each other test leaves a pool behind.
    first = ("test_books", "test_tools", "test_marks", "test_terminal")
    items.sort(key=lambda item: [name not in item.nodeid for name in first])
    if os.access("/dev/zfs", os.R_OK | os.W_OK):
        return
    if os.environ.get("ZFS_TESTS_REQUIRED"):
        pytest.exit("the zfs module is not loaded, and its tests must run", 1)
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(
                pytest.mark.skip(reason="needs root and the zfs module")
            )


def pytest_runtest_logreport(report):
    if report.when == "call" and not report.skipped:
        if "tests/zfs/" in report.nodeid or "zfs/" in report.nodeid:
            ran["zfs"] += 1


def pytest_terminal_summary(terminalreporter):
    say = terminalreporter.write_line
    real = core_admin_version()
    say(
        f"OpenZFS {lzc.module_version() or 'none'},"
        f" kernel {platform.release()}, Python {platform.python_version()}, "
        + (f"core-admin {real}" if real else "our stand-in for core-admin")
    )
    skipped = terminalreporter.stats.get("skipped", [])
    say(f"tests run on real ZFS: {ran['zfs']}, skipped: {len(skipped)}")
    for line in said:
        say(line)
    for reason in sorted({str(report.longrepr[2]) for report in skipped}):
        say(f"  skipped because: {reason}")


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory):
    """Redirect the directory in which qubesd marks running volumes."""
    folder = tmp_path_factory.mktemp("run")
    qubes.storage.VOLUME_STATE_DIR = str(folder)
    module = getattr(qubes.storage, "volume", None)
    if module is not None and hasattr(module, "VOLUME_STATE_DIR"):
        module.VOLUME_STATE_DIR = str(folder)
    return folder


@pytest.fixture(scope="session")
def zpool():
    """Create a zpool in memory that exists until the guest stops.

    Destroying it would hang if a failed test left one of its zvols open.
    """
    clear()
    create_zpool(ZPOOL, DISK, 1536 * MIB, sectors())
    return ZPOOL


@pytest.fixture(autouse=True)
def deadline(monkeypatch):
    """Allow 30 s for a query that waits for no disk.

    On an emulated and shared machine such a query can be slow.
    """
    monkeypatch.setattr(threads, "DEADLINE", 30.0)


@pytest.fixture
def lab(zpool):
    return Lab(zpool)


@pytest.fixture
def make_lab(zpool):
    return lambda **options: Lab(zpool, **options)


@pytest.fixture
def patience(monkeypatch):
    """Raise the limits on waiting for a device, for tests with many volumes.

    On an emulated machine, opening a device can wait long while ZFS writes
    transaction groups.
    """
    monkeypatch.setattr(devices, "LINK_LIMIT", 300.0)
    monkeypatch.setattr(devices, "OPEN_TRIES", 100)


@pytest.fixture
def away():
    """Create a pool on a zpool of its own, which the test can export."""
    with another_zpool("away") as name:
        yield Lab(name)


@pytest.fixture
def person(monkeypatch):
    """Answer each prompt; return the object that answers."""
    somebody = Person()
    monkeypatch.setattr(prompts, "prompt", somebody.prompt)
    return somebody


@pytest.fixture
def safe(zpool, person):
    """Create an encrypted pool with its key loaded."""
    return EncryptedLab(zpool)


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    """Give the test its own runtime directory, and unload keys quickly."""
    monkeypatch.setattr(rundir, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(keytimer, "CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(keytimer, "OPERATION_LIMIT", 8.0)


@pytest.fixture
def disks():
    """Create parts of a disk that can be disconnected and reconnected."""
    with parts_of_a_disk() as parts:
        yield parts


@pytest.fixture
def stick(disks):
    """Create a pool on one of these parts."""
    disks.zpool("a")
    return make(Lab, disks)


@pytest.fixture
def app(zpool, tmp_path):
    """Return the stand-in's application object, with both drivers."""
    import hostapi
    import qubes.ext

    from qubes_storage_zfs.driver.extension import PoolExtension

    hostapi.register_driver("zfs_zvol", ZfsZvolPool)
    hostapi.register_driver("zfs_encrypted", ZfsEncryptedPool)
    qubes.ext.register_extension(PoolExtension)
    return hostapi.new_app(str(tmp_path / "qubes.xml"), hold_devices=True)
