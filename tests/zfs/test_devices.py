# SPDX-License-Identifier: BSD-2-Clause
"""Devices on which the driver may create a zpool, and devices it refuses.

The tests need root, the zfs module, and /dev/vdd: an empty disk of 512 MiB
that is not in use. Other devices are loop devices on files.
"""

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from qubes_storage_zfs.store import policy
from qubes_storage_zfs.zfs import commands, importexport, newzpool, probe
from qubes_storage_zfs.zfs.errors import CommandFailed
from qubes_storage_zfs.zfs.probe import DeviceRefused

from ..support.waiting import until
from ..support.zpools import MIB, sh

ZPOOL = "devtest"
LUKS = "cryptsetup luksFormat -q --pbkdf pbkdf2 --key-file /etc/passwd"

pytestmark = [
    pytest.mark.side_b,
    pytest.mark.skipif(
        not (os.path.exists("/dev/zfs") and os.path.exists("/dev/vdd")),
        reason="needs root, the zfs module, and the test guest's disks",
    ),
]


def edges(path: str) -> str:
    """Return a digest of the first and last MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for offset in (0, file.seek(0, os.SEEK_END) - MIB):
            file.seek(offset)
            digest.update(file.read(MIB))
    return digest.hexdigest()


def partitions(disk: str) -> list[Path]:
    return list(Path("/sys/block", disk[5:]).glob("*/partition"))


def write(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture(scope="module", autouse=True)
def modules():
    sh("modprobe", "-a", "loop", "dm_mod")


@pytest.fixture
def no_zpool():
    """Destroy the zpool before its devices are removed."""
    yield
    sh("sh", "-c", f"zpool destroy {ZPOOL} 2>/dev/null || true")


@pytest.fixture
def disk():
    """Return a disk that is all zero and unpartitioned before and after."""
    yield "/dev/vdd"
    sh("blkdiscard", "-f", "-z", "/dev/vdd")
    sh("blockdev", "--rereadpt", "/dev/vdd")
    sh("udevadm", "settle")
    until(lambda: not partitions("/dev/vdd"), "no partition is left")


@contextlib.contextmanager
def loop_device(folder: Path, size: int = 512 * MIB):
    file = folder / f"image{len(list(folder.iterdir()))}"
    file.touch()
    os.truncate(file, size)
    device = sh("losetup", "--find", "--show", str(file))
    try:
        yield device
    finally:
        sh("losetup", "--detach", device)
        file.unlink()


@pytest.fixture
def loop(tmp_path):
    with loop_device(tmp_path) as device:
        yield device


async def checked(*devices: str) -> list[str]:
    """Return the devices if the driver may overwrite all of them."""
    async with probe.checked(devices) as known:
        return [device.path for device in known]


def check(*devices: str) -> list[str]:
    return asyncio.run(checked(*devices))


def create(*devices: str) -> None:
    mark = {**policy.ZPOOL_ROOT_SETTINGS, "org.example:mark": "yes"}
    asyncio.run(commands.create_zpool(ZPOOL, devices, "lz4", mark))


def undo(*devices: str) -> None:
    asyncio.run(probe.make_empty_again(devices))


@contextlib.contextmanager
def held(path: str):
    fd = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        yield
    finally:
        os.close(fd)


def refused(device: str, words: str, *, given=(), live=False) -> str:
    """Assert that *device* is refused and unchanged; return the message.

    :param live: another program writes to the device, so it may change
    """
    before = edges(device)
    with pytest.raises(DeviceRefused) as caught:
        check(*(given or (device,)))
    assert live or edges(device) == before
    sentence = str(caught.value)
    print(sentence)
    assert sentence.startswith(f"{device} {words}")
    assert not sentence.endswith(".")
    assert "%" not in sentence and sentence.isprintable()
    return sentence


def follow(sentence: str, device: str) -> None:
    """Follow the message's remedy for a device with no data to keep."""
    if "run 'sudo wipefs" in sentence:
        sh(*sentence.partition("run '")[2].partition("'")[0].split())
    assert "overwrite its first and last MiB with zeroes" in sentence
    for offset in (0, 511 * MIB):
        write(device, offset, bytes(MIB))
    sh("udevadm", "settle")
    assert check(device) == [device]


def test_empty_devices_are_accepted(disk, loop):
    write(loop, 100 * MIB, b"leftover" * 1000)
    assert check(disk, loop) == [disk, loop]


# --- refused: kind of device ------------------------------------------------


def test_invalid_device_paths_are_refused(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(bytes(4 * MIB))
    refused(str(file), "is not a block device")
    with pytest.raises(DeviceRefused, match="is not an absolute path"):
        check("vdd")
    with pytest.raises(DeviceRefused, match="does not exist"):
        check("/dev/none-such")


def test_same_device_twice_is_refused(loop, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(loop)
    refused(loop, "is the same device as", given=(loop, loop))
    refused(str(link), "is the same device as", given=(loop, str(link)))


def test_small_device_is_refused(tmp_path):
    with loop_device(tmp_path, probe.SMALLEST - MIB) as device:
        refused(device, "is too small (255 MiB)")


def test_read_only_device_is_refused(loop):
    sh("blockdev", "--setro", loop)
    try:
        refused(loop, "is read-only")
    finally:
        # the kernel would keep the setting for the next user of the loop device
        sh("blockdev", "--setrw", loop)


# --- refused: in use ---------------------------------------------------------


@pytest.mark.parametrize(
    "begin, end, words",
    [
        (
            "mkdir '/tmp/a place'; mount LOOP '/tmp/a place'",
            "umount LOOP; rmdir '/tmp/a place'",
            "is mounted at /tmp/a place",
        ),
        ("mkswap LOOP; swapon LOOP", "swapoff LOOP", "is in use as swap"),
        (
            "dmsetup create devtest --table '0 600000 linear LOOP 0'",
            "udevadm settle; dmsetup remove --retry devtest",
            "is in use by devtest",
        ),
        (
            "losetup /dev/loop7 LOOP",
            "losetup -d /dev/loop7",
            "is in use by /dev/loop7",
        ),
    ],
)
def test_device_in_use_is_refused(loop, begin, end, words):
    # a mounted filesystem must not write while the test compares it
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    sh("mkfs.ext4", "-q", "-F", "-E", lazy, loop)
    sh("sh", "-ec", begin.replace("LOOP", loop))
    try:
        sh("sync")
        refused(loop, words)
    finally:
        sh("sh", "-ec", end.replace("LOOP", loop))


def test_exclusively_open_device_is_refused(disk):
    with held(disk):
        refused(disk, "is in use by the system or by an imported zpool;")

    async def for_a_moment():
        fd = os.open(disk, os.O_RDONLY | os.O_EXCL)
        asyncio.get_running_loop().call_later(1.0, os.close, fd)
        return await checked(disk)

    assert asyncio.run(for_a_moment()) == [disk]


def test_disk_of_an_imported_zpool_is_refused(loop, disk, no_zpool):
    create(loop, disk)
    words = "is in use by the system or by an imported zpool, and contains the"
    refused(loop, words, live=True)
    refused(disk + "1", words, live=True)
    refused(disk, "is in use by the system or by an imported", live=True)
    sh("zfs", "create", "-s", "-V", "300M", f"{ZPOOL}/volume")
    until(lambda: os.path.exists(f"/dev/zvol/{ZPOOL}/volume"), "a link")
    refused(f"/dev/zvol/{ZPOOL}/volume", "is a zvol")


# --- refused: not empty -----------------------------------------------------


@pytest.mark.parametrize(
    "command, words",
    [
        ("mkfs.xfs -q", "contains a signature (xfs)"),
        ("mkfs.ext4 -q -F", "contains a signature (ext4)"),
        ("mkfs.btrfs -q", "contains a signature (btrfs)"),
        ("mkswap", "contains swap space"),
        ("pvcreate", "contains an LVM physical volume"),
        (LUKS, "contains an encrypted LUKS volume"),
    ],
)
def test_device_with_a_signature_is_refused(loop, command, words):
    sh(*command.split(), loop)
    sh("udevadm", "settle")
    follow(refused(loop, words), loop)


@pytest.mark.parametrize(
    "kind, words", [("dos", "contains an MBR"), ("gpt", "contains a GPT")]
)
def test_disk_with_a_partition_table_is_refused(disk, kind, words):
    table = f"label: {kind}\n"
    sh("sfdisk", "--quiet", disk, given=table)
    sh("udevadm", "settle")
    follow(refused(disk, f"{words} partition table"), disk)
    sh("sfdisk", "--quiet", disk, given=table + "size=300M\nsize=100M\n")
    sh("udevadm", "settle")
    until(lambda: len(partitions(disk)) == 2, "both partitions")
    sentence = refused(disk, "has partitions (vdd1, vdd2)")
    first = disk + "1"
    refused(first, f"is a partition of {disk}", given=(first, disk))
    assert check(first) == [first]
    follow(sentence, disk)


@pytest.mark.parametrize("end", ["export", "destroy"])
def test_disk_of_a_zpool_that_is_not_imported_is_refused(loop, no_zpool, end):
    create(loop)
    sh("zpool", end, ZPOOL)
    follow(refused(loop, "contains the label of a zpool, perhaps"), loop)


@pytest.mark.parametrize(
    "offset, size", [(0, 1), (MIB - 1, 1), (-1, 1), (0, 8 * MIB)]
)
def test_device_with_other_data_is_refused(disk, loop, offset, size):
    write(loop, offset % (512 * MIB), b"\xa5" + os.urandom(size - 1))
    sentence = refused(
        loop, "is not empty: it contains data", given=(disk, loop)
    )
    follow(sentence, loop)


# --- creating the zpool -----------------------------------------------------

PROPERTIES = {
    "zpool": "autotrim=on failmode=continue autoreplace=off autoexpand=off"
    " ashift=0",
    "zfs": "mountpoint=none canmount=off volmode=dev snapdev=hidden atime=off"
    " compression=lz4 org.qubes-os:part-of-qvm-pool=true"
    " com.sun:auto-snapshot=false org.example:mark=yes",
}


def test_create_zpool_sets_its_properties(disk, loop, no_zpool):
    create(*check(disk, loop))
    assert commands.zpool_imported(ZPOOL)
    for program, words in PROPERTIES.items():
        wanted = dict(word.split("=") for word in words.split())
        names = ",".join(wanted)
        seen = sh(program, "get", "-H", "-o", "property,value", names, ZPOOL)
        assert dict(line.split() for line in seen.split("\n")) == wanted
    asyncio.run(commands.set_property(ZPOOL, "compression", "off"))
    assert sh("zfs", "get", "-Ho", "value", "compression", ZPOOL) == "off"
    asyncio.run(commands.destroy_zpool(ZPOOL))
    assert not commands.zpool_imported(ZPOOL)
    # undo() works after a creation that succeeded as after one that failed
    undo(disk, loop)
    assert check(disk, loop) == [disk, loop]
    assert edges(disk) == edges(loop)


def test_create_zpool_refuses_the_name_of_an_imported_zpool(
    disk, loop, no_zpool
):
    create(loop)
    before = edges(disk)
    with pytest.raises(CommandFailed, match="exists"):
        create(*check(disk))
    assert partitions(disk)
    undo(disk)
    assert edges(disk) == before
    assert check(disk) == [disk]


@pytest.mark.parametrize("busy_first", [False, True])
def test_create_zpool_fails_if_a_device_becomes_busy(
    disk, loop, no_zpool, busy_first
):
    devices = check(disk, loop)
    before = edges(disk), edges(loop)
    with held(devices[not busy_first]), pytest.raises(CommandFailed):
        create(*devices)
    assert not commands.zpool_imported(ZPOOL)
    undo(*devices)
    assert (edges(disk), edges(loop)) == before
    assert check(disk, loop) == [disk, loop]


def test_create_zpool_fails_on_write_errors(disk, loop, no_zpool):
    """The device can be opened and read, but writes to it fail."""
    devices = check(disk, loop)
    table = f"0 1048576 flakey {loop} 0 0 60 1 error_writes"
    sh("dmsetup", "create", "devtest", "--table", table)
    try:
        until(lambda: os.path.exists("/dev/mapper/devtest"), "a node")
        with pytest.raises(CommandFailed):
            create(disk, "/dev/mapper/devtest")
        assert partitions(disk)
    finally:
        sh("udevadm", "settle")
        sh("dmsetup", "remove", "--retry", "devtest")
    undo(*devices)
    assert check(disk, loop) == devices
    assert not partitions(disk)


def test_create_zpool_never_uses_force(loop, no_zpool):
    devices = check(loop)
    sh("mkfs.ext4", "-q", "-F", loop)
    before = edges(loop)
    with pytest.raises(CommandFailed, match="contains a filesystem"):
        create(*devices)
    assert edges(loop) == before


def test_make_empty_again_refuses_a_changed_device(disk, loop):
    sh("mkfs.ext4", "-q", "-F", disk)
    before = edges(disk)
    with pytest.raises(DeviceRefused, match=f"{disk} was changed by"):
        undo(disk, loop)
    assert edges(disk) == before
    assert check(loop) == [loop]


def test_make_empty_again_refuses_an_imported_zpool(loop, no_zpool):
    create(loop)
    with pytest.raises(DeviceRefused, match="could not be cleared"):
        undo(loop)
    assert sh("zpool", "list", "-Ho", "health", ZPOOL) == "ONLINE"


# --- only the disk that was checked is used


def make_of(link: Path) -> None:
    async def story() -> None:
        async with probe.checked([str(link)]) as disks:
            await newzpool.create(ZPOOL, disks, "lz4", {"mountpoint": "none"})

    asyncio.run(story())


def swap(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize("when", ["before", "while"])
def test_swapped_link_does_not_overwrite_another_disk(
    disk, loop, no_zpool, monkeypatch, when
):
    link = Path("/dev/devtest-link")
    swap(link, loop)
    write(disk, 0, b"somebody's data")
    before = edges(disk)
    signatures, create_zpool = probe._signatures, commands.create_zpool

    async def swapped_first(*words):
        swap(link, disk)
        return await (create_zpool if when == "while" else signatures)(*words)

    if when == "while":
        monkeypatch.setattr(commands, "create_zpool", swapped_first)
    else:
        monkeypatch.setattr(probe, "_signatures", swapped_first)
    try:
        with pytest.raises(DeviceRefused, match="leads to another device than"):
            make_of(link)
    finally:
        link.unlink()
    assert edges(disk) == before
    assert not commands.zpool_imported(ZPOOL)
    monkeypatch.undo()
    undo(loop)
    assert check(loop) == [loop]


@pytest.mark.parametrize("kind", ["mapper", "disk"])
def test_zpool_records_the_requested_path(disk, no_zpool, tmp_path, kind):
    """After a reboot, the kernel's name may refer to another disk."""
    if kind == "mapper":
        sh(
            "dmsetup",
            "create",
            "devtest",
            "--table",
            f"0 700000 linear {disk} 0",
        )
        given = recorded = Path("/dev/mapper/devtest")
    else:
        given = Path("/dev/disk/by-devtest/one")
        recorded = Path(f"{given}-part1")
        given.parent.mkdir(exist_ok=True)
        swap(given, disk)
        swap(recorded, f"{disk}1")
    until(given.exists, "a node")
    try:
        make_of(given)
        assert asyncio.run(importexport.disks(ZPOOL)) == [str(recorded)]
        cache = tmp_path / "cache"
        cache.write_bytes(Path("/etc/zfs/zpool.cache").read_bytes())
        sh("zpool", "export", ZPOOL)
        label = sh("zdb", "-l", str(recorded))
        assert f"path: '{recorded}'" in label
        sh("zpool", "import", "-N", "-c", str(cache), ZPOOL)
        sh("zpool", "destroy", ZPOOL)
    finally:
        sh("sh", "-c", f"zpool destroy {ZPOOL} 2>/dev/null || true")
        if kind == "mapper":
            sh("udevadm", "settle")
            sh("dmsetup", "remove", "--retry", "devtest")


def test_lvm_volume_is_refused_even_if_empty(disk):
    command = "dmsetup", "create", "devtest-lv", "--uuid", "LVM-devtestdevtest"
    sh(*command, "--table", f"0 700000 linear {disk} 0")
    try:
        until(lambda: os.path.exists("/dev/mapper/devtest-lv"), "a node")
        assert refused("/dev/mapper/devtest-lv", "is an LVM volume")
    finally:
        sh("udevadm", "settle")
        sh("dmsetup", "remove", "--retry", "devtest-lv")
