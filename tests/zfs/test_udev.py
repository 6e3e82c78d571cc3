# SPDX-License-Identifier: BSD-2-Clause
"""udev, the kernel and qvm-block in dom0 scan no volume.

With the rules of ``tests/host/udev``, or with dom0's own where checkouts of
qubes-core-admin-linux and qubes-linux-utils are given.
"""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qubes_storage_zfs.zfs import devices, lzc

from ..support.zpools import MIB, sh

SIZE = 16 * MIB
HOST = Path(__file__).resolve().parents[1] / "host" / "udev"
RULES = Path("/run/udev/rules.d")
PROGRAMS = Path("/usr/lib/udev/zvol_is_qubes_volume"), Path(
    "/usr/lib/qubes/udev-block-add-change"
)
LIST = Path("/run/qubes-block-devices")
WRITER = Path("/usr/local/bin/qubesdb-write")
#: replaces qubesdb-write, which the rules run
WRITE = f'#!/bin/sh\necho "$1" >>{LIST}\n'


def source(variable, name, folder):
    """Return the path of a file of dom0, in a checkout if one is configured."""
    if variable in os.environ:
        return Path(os.environ[variable]) / folder / name
    return HOST / name


def settle():
    sh("udevadm", "settle")


def properties(node):
    shown = sh("udevadm", "info", "--query=property", f"--name={node}")
    return dict(line.split("=", 1) for line in shown.split("\n") if line)


def reads(node):
    """Return the number of sectors read since the device was created."""
    return int(Path(f"/sys/block/{node.name}/stat").read_text().split()[2])


@pytest.fixture
def dom0_rules():
    """Install the udev rules of dom0."""
    files = {
        RULES
        / "11-qubes-ignore-zvol-devices.rules": source(
            "QUBES_CORE_ADMIN_LINUX",
            "11-qubes-ignore-zvol-devices.rules",
            "system-config",
        ),
        PROGRAMS[0]: source(
            "QUBES_CORE_ADMIN_LINUX", "zvol_is_qubes_volume", "system-config"
        ),
        RULES
        / "99-qubes-block.rules": source(
            "QUBES_LINUX_UTILS", "udev-qubes-block.rules", "udev"
        ),
        PROGRAMS[1]: source(
            "QUBES_LINUX_UTILS", "udev-block-add-change", "udev"
        ),
    }
    for place, file in files.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    for program in PROGRAMS:
        program.chmod(0o755)
    WRITER.write_text(WRITE)
    WRITER.chmod(0o755)
    LIST.unlink(missing_ok=True)
    sh("udevadm", "control", "--reload")
    yield
    settle()
    for place in (*files, WRITER):
        place.unlink()
    sh("udevadm", "control", "--reload")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Create an image with a partition table, as a qube may write it."""
    image = tmp_path_factory.mktemp("table") / "image"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    script = "label: dos\nstart=2048, size=8192\n"
    command = ["sfdisk", "-q", str(image)]
    subprocess.run(command, input=script, text=True, check=True)
    return image


def put(image, node):
    """Write an image to a device without reading from the device."""
    command = f"dd if={image} of={node} bs=1M oflag=direct conv=notrunc"
    sh(*command.split(), "status=none")


def looked_into(path):
    """Return the facts that dom0 read from the content of a device."""
    settle()
    node = Path(path).resolve()
    # trigger the event that follows each close of the device
    sh("udevadm", "trigger", "--action=change", f"--name-match={node}")
    settle()
    facts = [
        name
        for name in properties(node)
        if name.startswith(("ID_FS_", "ID_PART_TABLE_"))
    ]
    block = Path("/sys/block", node.name)
    facts += [part.name for part in block.glob(f"{node.name}p*")]
    if reads(node):
        facts.append("read")
    if LIST.exists() and f"/{node.name}/" in LIST.read_text():
        facts.append("listed")
    return facts


def test_dom0_scans_a_zvol_outside_all_pools(zpool, dom0_rules, table):
    """This shows that the next test can fail."""
    name = f"{zpool}/no-qubes"
    sh("zfs", "create", "-s", "-V", str(SIZE), name)
    settle()
    path = Path("/dev/zvol") / name
    put(table, path)
    facts = looked_into(path)
    assert {"read", "listed", f"{path.resolve().name}p1"} <= set(facts)
    assert "ID_PART_TABLE_TYPE" in facts
    asyncio.run(devices.retry_busy(name, lambda: lzc.destroy(name), 60))


def test_dom0_scans_no_volume(lab, dom0_rules, table):
    root = lab.private("tmpl", name="root", size=SIZE)
    put(table, lab.run(root.import_data(SIZE)))
    lab.run(root.import_data_end(True))
    private = lab.private(size=SIZE)
    app = lab.clone_of(root)
    volatile = lab.volatile(size=SIZE)
    lab.start(private, app, volatile)
    for volume in private, volatile:
        put(table, volume.path)
    for volume in root, private, app, volatile:
        assert looked_into(volume.path) == []
    lab.stop(private, app, volatile)
    assert looked_into(private.path) == []
    copy = lab.volume("copy", save_on_stop=True, size=SIZE)
    lab.run(copy.create())
    lab.run(copy.import_volume(private))
    lab.run(private.revert())
    exported = lab.run(copy.export())
    for path in private.path, copy.path, exported:
        assert looked_into(path) == []
    lab.run(copy.export_end(exported))
    # after a reboot the kernel and udev see all of them for the first time
    sh("udevadm", "trigger", "--action=add", "--subsystem-match=block")
    for volume in root, private, copy:
        assert looked_into(volume.path) == []
