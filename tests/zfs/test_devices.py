"""Devices on which a zpool may be made, and those left alone.

Needs root, the zfs module, and two empty disks of 512 MiB that nobody else
uses; other devices are loop devices on files.
"""

import asyncio
import contextlib
import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from qubes_storage_zfs.zfs import blank, native
from qubes_storage_zfs.zfs.blank import DeviceRefused
from qubes_storage_zfs.zfs.errors import CommandFailed

MIB = 1 << 20
ZPOOL = "devtest"
LUKS = (
    "cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2"
    " --pbkdf-force-iterations 1000 --key-file /etc/passwd"
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not os.path.exists("/dev/zfs")
    or not all(map(os.path.exists, ("/dev/vdd", "/dev/vde"))),
    reason="needs root, the zfs module, and the test guest's disks",
)


def sh(*command: str, given: str = "") -> str:
    done = subprocess.run(
        command, check=False, input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def until(condition) -> None:
    """Wait for what udev and the kernel do in their own time."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def edges(path: str) -> str:
    """A digest of the first and last MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for offset in (0, file.seek(0, os.SEEK_END) - MIB):
            file.seek(offset)
            digest.update(file.read(MIB))
    return digest.hexdigest()


def partitions(disk: str) -> list[Path]:
    name = os.path.basename(disk)
    return sorted(Path("/sys/class/block", name).glob("*/partition"))


def write(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def empty(disk: str) -> None:
    """All of a disk zero and without partitions, as the guest got it."""
    sh("blkdiscard", "-f", "-z", disk)
    sh("blockdev", "--rereadpt", disk)
    sh("udevadm", "settle")
    until(lambda: not partitions(disk))


@pytest.fixture(scope="module", autouse=True)
def modules():
    sh("modprobe", "-a", "loop", "dm_mod")


@pytest.fixture
def no_zpool():
    """Has the zpool's end come before that of its devices."""
    yield
    subprocess.run(
        ["zpool", "destroy", ZPOOL], check=False, stderr=subprocess.DEVNULL
    )


@pytest.fixture
def disk():
    yield "/dev/vdd"
    empty("/dev/vdd")


@pytest.fixture
def second():
    yield "/dev/vde"
    empty("/dev/vde")


@contextlib.contextmanager
def loop_device(folder: Path, size: int = 512 * MIB):
    file = folder / f"image{len(list(folder.iterdir()))}"
    with open(file, "wb") as image:
        image.truncate(size)
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


def check(*devices: str) -> list[str]:
    return asyncio.run(blank.check_blank(devices))


def create(*devices: str, mark: str = "") -> None:
    given = {"org.example:mark": mark}
    asyncio.run(native.create_zpool(ZPOOL, devices, "lz4", given))


def undo(*devices: str) -> None:
    asyncio.run(blank.make_blank_again(devices))


@contextlib.contextmanager
def held(path: str):
    fd = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        yield
    finally:
        os.close(fd)


def refused(device: str, *words: str, given: tuple[str, ...] = ()) -> str:
    """The sentence *device* is refused with, untouched."""
    before = edges(device)
    with pytest.raises(DeviceRefused) as caught:
        check(*(given or (device,)))
    assert edges(device) == before
    sentence = str(caught.value)
    print(sentence)
    assert sentence.startswith(device + " ")
    assert sentence.endswith(".")
    assert "%" not in sentence and sentence.isprintable()
    for word in words:
        assert word in sentence
    return sentence


def follow(sentence: str, device: str) -> None:
    """Do what the sentence tells to do when nothing on it is needed."""
    if "run 'wipefs" in sentence:
        sh(*sentence.partition("run '")[2].partition("'")[0].split())
    assert "overwrite its first and last MiB with zeroes" in sentence
    for offset in (0, 511 * MIB):
        write(device, offset, bytes(MIB))
    sh("udevadm", "settle")
    assert check(device) == [device]


# --- accepted ---------------------------------------------------------------


def test_blank_devices_are_accepted(disk, loop):
    write(loop, 100 * MIB, b"leftover" * 1000)
    before = edges(disk), edges(loop)
    assert check(disk, loop) == [disk, loop]
    assert (edges(disk), edges(loop)) == before


# --- refused: what it is ----------------------------------------------------


def test_names(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(bytes(4 * MIB))
    refused(str(file), "is not a block device")
    with pytest.raises(DeviceRefused, match="is not an absolute path"):
        check("vdd")
    with pytest.raises(DeviceRefused, match="does not exist"):
        check("/dev/none-such")


def test_given_twice(loop, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(loop)
    refused(loop, "is the same device as", given=(loop, loop))
    sentence = refused(str(link), given=(loop, str(link)))
    assert f"is the same device as {loop}" in sentence


def test_too_small(tmp_path):
    with loop_device(tmp_path, blank.SMALLEST - MIB) as device:
        refused(device, "is too small (255 MiB)", "at least 256 MiB")
    with loop_device(tmp_path, blank.SMALLEST) as device:
        assert check(device) == [device]


def test_read_only(loop):
    sh("blockdev", "--setro", loop)
    try:
        refused(loop, "is read-only")
    finally:
        # the kernel would remember it for whatever is loop0 next
        sh("blockdev", "--setrw", loop)


def test_zvol(disk, no_zpool):
    create(disk)
    sh("zfs", "create", "-s", "-V", "300M", f"{ZPOOL}/volume")
    until(lambda: os.path.exists(f"/dev/zvol/{ZPOOL}/volume"))
    refused(f"/dev/zvol/{ZPOOL}/volume", "is a volume of ZFS")


# --- refused: somebody uses it ----------------------------------------------


def test_mounted(loop, tmp_path):
    place = tmp_path / "a place"
    place.mkdir()
    sh("mkfs.ext4", "-q", "-F", loop)
    sh("mount", loop, str(place))
    try:
        sh("sync")
        refused(loop, f"is mounted at {place}", "release it there")
    finally:
        sh("umount", str(place))


def test_swap(loop):
    sh("mkswap", loop)
    refused(loop, "carries swap space")
    sh("swapon", loop)
    try:
        refused(loop, "is in use as swap")
    finally:
        sh("swapoff", loop)


def test_device_mapper_holds_it(loop):
    sh("dmsetup", "create", "devtest", "--table", f"0 600000 linear {loop} 0")
    try:
        refused(loop, "is in use by devtest")
    finally:
        sh("udevadm", "settle")
        sh("dmsetup", "remove", "--retry", "devtest")


def test_backs_a_loop_device(loop):
    outer = sh("losetup", "--find", "--show", loop)
    try:
        refused(loop, f"is in use by {outer}")
    finally:
        sh("losetup", "--detach", outer)


def test_open_exclusively(disk):
    with held(disk):
        refused(disk, "is in use by the system or by an imported zpool;")


def test_busy_for_a_moment_is_waited_for(disk):
    async def both():
        fd = os.open(disk, os.O_RDONLY | os.O_EXCL)
        asyncio.get_running_loop().call_later(1.0, os.close, fd)
        return await blank.check_blank([disk])

    assert asyncio.run(both()) == [disk]


def test_member_of_an_imported_zpool(loop, disk, no_zpool):
    create(loop, disk)
    refused(loop, "is in use by the system or by an imported zpool", "zpool,")
    refused(disk, "has partitions (vdd1, vdd9)")
    refused(disk + "1", "is in use by the system or by an imported zpool")


# --- refused: there is something on it --------------------------------------


@pytest.mark.parametrize(
    "command, words",
    [
        ("mkfs.xfs -q", "carries a signature (xfs)"),
        ("mkfs.ext4 -q -F", "carries a signature (ext4)"),
        ("mkfs.btrfs -q", "carries a signature (btrfs)"),
        ("mkswap", "carries swap space"),
        ("pvcreate", "carries an LVM physical volume"),
        (LUKS, "carries an encrypted LUKS volume"),
    ],
)
def test_signatures(loop, command, words):
    sh(*command.split(), loop)
    sh("udevadm", "settle")
    follow(refused(loop, words), loop)


def test_partition_tables(disk):
    for kind, words in (("dos", "an MBR"), ("gpt", "a GPT")):
        sh("sfdisk", "--quiet", disk, given=f"label: {kind}\n")
        sh("udevadm", "settle")
        follow(refused(disk, f"carries {words} partition table"), disk)


@pytest.mark.parametrize("kind", ["dos", "gpt"])
def test_partitions(disk, kind):
    table = f"label: {kind}\nsize=300M\nsize=100M\n"
    sh("sfdisk", "--quiet", disk, given=table)
    sh("udevadm", "settle")
    until(lambda: len(partitions(disk)) == 2)
    sentence = refused(disk, "has partitions (vdd1, vdd2)")
    refused(disk + "1", f"is a partition of {disk}", given=(disk + "1", disk))
    assert check(disk + "1") == [disk + "1"]
    follow(sentence, disk)


def test_exported_zpool(loop, no_zpool):
    create(loop)
    sh("zpool", "export", ZPOOL)
    follow(refused(loop, "carries the label of a zpool"), loop)


def test_destroyed_zpool(loop, no_zpool):
    create(loop)
    sh("zpool", "destroy", ZPOOL)
    follow(refused(loop, "carries the label of a zpool, perhaps"), loop)


@pytest.mark.parametrize(
    "offset, size", [(0, 1), (MIB - 1, 1), (-1, 1), (0, 8 * MIB)]
)
def test_data_without_a_signature(disk, loop, offset, size):
    write(loop, offset % (512 * MIB), b"\xa5" + os.urandom(size - 1))
    sentence = refused(loop, "that is not recognised", given=(disk, loop))
    follow(sentence, loop)


# --- making it --------------------------------------------------------------

PROPERTIES = {
    "zpool": {"autotrim": "on", "failmode": "continue", "ashift": "0"},
    "zfs": {
        "mountpoint": "none",
        "canmount": "off",
        "volmode": "dev",
        "snapdev": "hidden",
        "atime": "off",
        "compression": "lz4",
        "org.qubes-os:part-of-qvm-pool": "true",
        "com.sun:auto-snapshot": "false",
        "org.example:mark": "a b",
    },
}


def test_create_zpool(disk, loop, no_zpool):
    create(*check(disk, loop), mark="a b")
    assert native.zpool_imported(ZPOOL)
    for program, wanted in PROPERTIES.items():
        names = ",".join(wanted)
        seen = sh(program, "get", "-H", "-o", "property,value", names, ZPOOL)
        assert dict(line.split("\t") for line in seen.split("\n")) == wanted
    asyncio.run(native.set_property(ZPOOL, "compression", "off"))
    assert sh("zfs", "get", "-Ho", "value", "compression", ZPOOL) == "off"
    asyncio.run(native.destroy_zpool(ZPOOL))
    assert not native.zpool_imported(ZPOOL)
    # what was made and taken back is no different from what failed
    undo(disk, loop)
    assert check(disk, loop) == [disk, loop]
    assert edges(disk) == edges(loop)


def test_name_taken(disk, loop, no_zpool):
    create(loop)
    before = edges(disk)
    with pytest.raises(CommandFailed, match="exists"):
        create(*check(disk))
    undo(disk)
    assert edges(disk) == before
    assert check(disk) == [disk]
    assert not partitions(disk)


@pytest.mark.parametrize("busy_first", [False, True])
def test_one_becomes_busy_after_the_check(disk, second, no_zpool, busy_first):
    devices = check(disk, second)
    before = edges(disk), edges(second)
    with held(devices[not busy_first]), pytest.raises(CommandFailed):
        create(*devices)
    assert not native.zpool_imported(ZPOOL)
    undo(*devices)
    assert (edges(disk), edges(second)) == before
    assert check(disk, second) == [disk, second]


def test_a_device_that_fails_halfway(disk, loop, no_zpool):
    """The kernel opens both, and cannot write the second's labels."""
    devices = check(disk, loop)
    sectors = 512 * MIB // 512
    table = f"0 {sectors} flakey {loop} 0 0 60 1 error_writes"
    sh("dmsetup", "create", "devtest", "--table", table)
    try:
        failing = "/dev/mapper/devtest"
        until(lambda: os.path.exists(failing))
        with pytest.raises(CommandFailed):
            create(disk, failing)
        assert not native.zpool_imported(ZPOOL)
    finally:
        sh("udevadm", "settle")
        sh("dmsetup", "remove", "--retry", "devtest")
    undo(*devices)
    assert check(disk, loop) == devices


def test_it_is_never_forced(loop, no_zpool):
    devices = check(loop)
    sh("mkfs.ext4", "-q", "-F", loop)
    before = edges(loop)
    with pytest.raises(CommandFailed, match="contains a filesystem"):
        create(*devices)
    assert edges(loop) == before


def test_undoing_leaves_what_is_not_of_zpool(disk, second):
    sh("mkfs.ext4", "-q", "-F", disk)
    before = edges(disk)
    with pytest.raises(DeviceRefused, match="left as it is") as caught:
        undo(disk, second)
    print(caught.value)
    assert caught.value.device == disk
    assert edges(disk) == before
    assert check(second) == [second]


def test_undoing_leaves_an_imported_zpool(loop, no_zpool):
    create(loop)
    with pytest.raises(DeviceRefused, match="could not be made empty"):
        undo(loop)
    sh("zpool", "scrub", "-w", ZPOOL)
    assert sh("zpool", "list", "-Ho", "health", ZPOOL) == "ONLINE"
