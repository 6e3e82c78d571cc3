"""Fixtures on a real zpool.  These tests are root's, in the guest."""

import asyncio
import contextlib
import itertools
import os
import platform
import subprocess
import time
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import qubes.storage

from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.driver.keytimer import Key
from qubes_storage_zfs.driver.pool import ZfsZvolPool
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.container import Container
from qubes_storage_zfs.store.policy import HOME_PROPERTIES
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import devices, keyholder, lzc, threads

from ..afterwards import settled
from .answers import PASSPHRASE

ZPOOL = "tank"
DISK = Path("/tmp/tank.img")
MIB = 1 << 20
_numbers = itertools.count(1)
ran = {"zfs": 0}
#: lines for the end of the run
said: list[str] = []


def sh(*command, check=True):
    """Run a command, give what it printed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        # the name of a dataset may be any bytes
        errors="surrogateescape",
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def configure(*configs):
    """These pools are in qubes.xml, and qubesd does not run."""
    root = ElementTree.Element("qubes")
    pools = ElementTree.SubElement(root, "pools")
    for config in configs:
        given = {name: str(value) for name, value in config.items()}
        ElementTree.SubElement(pools, "pool", given)
    common.QUBES_XML.parent.mkdir(exist_ok=True)
    common.QUBES_XML.unlink(missing_ok=True)
    common.QUBES_XML.write_bytes(ElementTree.tostring(root))


def inherit_no_further(dataset):
    """Set properties to what they are anyway.

    Each time ZFS opens a dataset it looks up each of these, from there to
    the zpool's root or to where it is set.  Under emulation that is half of
    what a look at a dataset costs.
    """
    values = {
        "checksum": "on",
        "compression": "on",
        "copies": "1",
        "dedup": "off",
        "logbias": "latency",
        "prefetch": "all",
        "primarycache": "all",
        "readonly": "off",
        "redundant_metadata": "all",
        "secondarycache": "all",
        "snapdev": "hidden",
        "sync": "standard",
        "volmode": "dev",
    }
    given = [f"{name}={value}" for name, value in values.items()]
    sh("zfs", "set", *given, dataset)


def export_zpool(name):
    """zpool export; udev may still be probing one of its zvols."""
    for _ in range(20):
        if "busy" not in _outcome("zpool", "export", name):
            return
        time.sleep(0.5)
    raise RuntimeError(f"{name} stays busy")


def _outcome(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    # the books have a zpool of the same name; the tools look at all pools,
    # and each test leaves one
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


def core_admin_version():
    """None: the stand-in is used, which has no version."""
    version = Path(qubes.storage.__file__).parents[2] / "version"
    return version.read_text("ascii").strip() if version.exists() else None


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
    """Where qubesd marks running volumes."""
    folder = tmp_path_factory.mktemp("run")
    qubes.storage.VOLUME_STATE_DIR = str(folder)
    module = getattr(qubes.storage, "volume", None)
    if module is not None and hasattr(module, "VOLUME_STATE_DIR"):
        module.VOLUME_STATE_DIR = str(folder)
    return folder


def sectors():
    """Options of zpool create: 512 bytes on OpenZFS 2.3, and 4 KiB, as most
    disks have, on others; what ZFS itself takes for a volume depends on it."""
    return "-o", f"ashift={9 if lzc.version_numbers() < (2, 4) else 12}"


def clear():
    """No zpool in memory is left by an earlier run in this guest."""
    if DISK.exists():
        sh("timeout", "60", "zpool", "destroy", "-f", ZPOOL)
        DISK.unlink()


@pytest.fixture(scope="session")
def zpool():
    """A zpool in memory; the guest's end is its end, for destroying a zpool
    waits for ever if a failed test left one of its zvols open."""
    clear()
    with open(DISK, "wb") as file:
        file.truncate(1536 * MIB)
    sh("zpool", "create", *sectors(), "-m", "none", ZPOOL, str(DISK))
    return ZPOOL


class Lab:
    """One pool in a container of its own, and what a test does with it."""

    kind = ZfsZvolPool

    def __init__(self, zpool, **options):
        self.name = f"pool-t{next(_numbers)}"
        self.container, where = self._place(zpool)
        self.options = {**where, **options}
        self.pool = self.add(self.name, **self.options)
        self.app = types.SimpleNamespace(pools={self.name: self.pool})

    def _place(self, zpool):
        container = f"{zpool}/{self.name}"
        return container, {"container": container}

    def run(self, awaitable):
        return asyncio.run(settled(awaitable))

    def add(self, name, **options):
        pool = self.kind(name=name, **options)
        self.run(pool.setup())
        return pool

    def vm(self, name):
        return types.SimpleNamespace(name=name, app=None)

    def volume(self, qube="work", name="private", pool=None, **config):
        """A volume object; nothing on disk yet."""
        pool = pool or self.pool
        config = {
            "name": name,
            "pool": pool.name,
            "rw": True,
            "size": 4 * MIB,
            **config,
        }
        return pool.init_volume(self.vm(qube), config)

    def private(self, qube="work", content=None, **config):
        """A persistent volume on disk, with *content* committed."""
        volume = self.volume(qube, save_on_stop=True, **config)
        self.run(volume.create())
        if content is not None:
            self.session(volume, content)
        return volume

    def clone_of(self, source, qube="app", **config):
        return self.volume(
            qube, "root", source=source, snap_on_start=True, **config
        )

    def volatile(self, qube="work", **config):
        return self.volume(qube, "volatile", **config)

    # a qube's life, as Storage.start() and stop() order it

    def start(self, *volumes):
        for volume in volumes:
            self.run(volume.start())
            Path(volume.state_file).touch()

    def stop(self, *volumes):
        for volume in volumes:
            self.run(volume.stop())
            Path(volume.state_file).unlink(missing_ok=True)

    def session(self, volume, content):
        """Start, write, stop."""
        self.start(volume)
        write(volume.path, content)
        self.stop(volume)

    def content(self, volume, length=16):
        """What an export of it reads."""
        path = self.run(volume.export())
        try:
            return read(path, length)
        finally:
            self.run(volume.export_end(path))

    def restart(self):
        """qubesd died: no Python state is left, and a new pool is made."""
        Container.forget_all()
        Key.forget_all()
        self.pool = self.kind(name=self.name, **self.options)
        return self.pool

    def again(self, volume):
        """The same volume, built anew as from qubes.xml."""
        config = {
            key: value if isinstance(value, bool) else str(value)
            for key, value in volume.config.items()
        }
        config["source"] = volume.source
        config["pool"] = self.pool.name
        if volume.source is None:
            del config["source"]
        else:
            config["source"] = self.again(volume.source)
        return self.pool.init_volume(self.vm("ignored"), config)

    def datasets(self, kind="all"):
        """Names below the container, without it."""
        out = sh("zfs", "list", "-Hr", "-t", kind, "-o", "name", self.container)
        start = self.container + "/"
        return [
            line.removeprefix(start)
            for line in out.split("\n")
            if line.startswith(start)
        ]

    def sweep_until(self, gone):
        """Sweep until *gone()* or for some seconds; udev may be probing."""
        for _ in range(20):
            self.run(self.pool.store.sweep())
            if gone():
                return True
            time.sleep(0.25)
        return False


class EncryptedLab(Lab):
    """One encrypted pool; what asks for passphrases must be patched.

    :ivar asked: it is added as a person adds it, which takes a process and
        two prompts; else the same is on disk and nobody was asked
    """

    kind = ZfsEncryptedPool

    def __init__(self, zpool, asked=False, **options):
        self.asked = asked
        super().__init__(zpool, **options)

    def _place(self, zpool):
        where = {"zpool_name": zpool, "pbkdf2iters": "100000"}
        return f"{zpool}/encryption/{self.name}", where

    def add(self, name, **options):
        if self.asked:
            return super().add(name, **options)
        pool = self.kind(name=name, **options)
        create_encrypted(pool.container, name)
        return pool


def create_encrypted(container, name):
    """The encryption root of a pool, with PASSPHRASE, its key loaded."""
    above = container.rpartition("/")[0]
    sh("zfs", "create", "-p", "-o", "canmount=off", above)
    made_from = {
        "encryption": keyholder.AES_256_GCM,
        "keyformat": keyholder.PASSPHRASE,
        "keylocation": "prompt",
        "pbkdf2iters": 100_000,
        "pbkdf2salt": 1,
    }
    properties = {**HOME_PROPERTIES, naming.OWNER: name, **made_from}
    with known_key() as key:
        lzc.create_root(container, properties, key)


def known_key():
    """The key of all that create_encrypted() made."""
    return keyholder.wrapping_key(bytearray(PASSPHRASE), 1, 100_000)


def open_device(path, flags):
    mode = "rb" if flags == os.O_RDONLY else "r+b"
    return os.fdopen(devices.open_node(path, flags), mode, buffering=0)


def write(path, content, offset=0):
    """As a qube does: through the device, and on disk when it returns."""
    with open_device(path, os.O_RDWR) as opened:
        opened.seek(offset)
        padded = content + bytes(-len(content) % 512)
        opened.write(padded)
        os.fsync(opened)


def read(path, length=16, offset=0):
    with open_device(path, os.O_RDONLY) as opened:
        opened.seek(offset)
        return opened.read(length).rstrip(b"\0")


@pytest.fixture(autouse=True)
def deadline(monkeypatch):
    """Where the machine is emulated and shared, a question that waits for no
    disk may take long."""
    monkeypatch.setattr(threads, "DEADLINE", 30.0)


@pytest.fixture
def lab(zpool):
    return Lab(zpool)


@pytest.fixture
def make_lab(zpool):
    return lambda **options: Lab(zpool, **options)


@pytest.fixture
def patience(monkeypatch):
    """For very many volumes at once: where the machine is emulated, opening
    a device may wait for long while transaction groups are written."""
    monkeypatch.setattr(devices, "LINK_LIMIT", 300.0)
    monkeypatch.setattr(devices, "OPEN_TRIES", 100)


@contextlib.contextmanager
def another_zpool(name):
    """A zpool of its own, which can be exported."""
    disk = Path(f"/tmp/{name}.img")
    with open(disk, "wb") as file:
        file.truncate(256 * MIB)
    sh("zpool", "create", "-m", "none", name, str(disk))
    yield name
    subprocess.run(["zpool", "destroy", "-f", name], check=False)
    disk.unlink()


@pytest.fixture
def away():
    with another_zpool("away") as name:
        yield Lab(name)
