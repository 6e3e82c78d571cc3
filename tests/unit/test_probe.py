# SPDX-License-Identifier: BSD-2-Clause
"""Probing of devices and the commands for zpools, without a device."""

import asyncio
import os
import time

import pytest

from qubes_storage_zfs.zfs import commands, errors, probe, sysfs


@pytest.mark.parametrize(
    "text, devices",
    [
        ("/dev/sda", ["/dev/sda"]),
        ("/dev/sda,/dev/sdb", ["/dev/sda", "/dev/sdb"]),
        (" /dev/sda,\t/dev/sdb\n", ["/dev/sda", "/dev/sdb"]),
        ("/dev/sda:/dev/sdb:/dev/sdc", ["/dev/sda", "/dev/sdb", "/dev/sdc"]),
        (
            "/dev/disk/by-path/pci-0000:00:17.0-ata-1:/dev/sdb",
            ["/dev/disk/by-path/pci-0000:00:17.0-ata-1", "/dev/sdb"],
        ),
        ("/dev/a:b:c", ["/dev/a:b:c"]),
        (",:/dev/sda,,", ["/dev/sda"]),
        ("sda sdb", ["sda", "sdb"]),
    ],
)
def test_a_list_of_devices_is_split(text: str, devices: list[str]) -> None:
    assert probe.split_devices(text) == devices


@pytest.mark.parametrize("text", ["", "  ", ",", " ,\n"])
def test_an_empty_list_of_devices_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="block_devices names no device"):
        probe.split_devices(text)


MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:27 / /proc rw - proc proc rw
40 22 254:48 / /mnt/a\\040b rw shared:2 master:1 - xfs /dev/vdd rw
41 22 0:50 /sub /mnt/c rw - btrfs /dev/null rw
42 22 0:51 / /mnt/d rw - tmpfs  rw
"""


def test_the_mount_point_of_a_device_is_found() -> None:
    assert sysfs.mounted_at(os.makedev(254, 48), MOUNTINFO) == "/mnt/a b"
    assert sysfs.mounted_at(os.makedev(254, 4), MOUNTINFO) is None
    # btrfs has a device number of its own, so the source decides
    null = os.stat("/dev/null").st_rdev
    assert sysfs.mounted_at(null, MOUNTINFO) == "/mnt/c"


def test_partitions_and_their_disk_are_found(tmp_path) -> None:
    disk = tmp_path / "vdz"
    for number in ("1", "9"):
        (disk / f"vdz{number}").mkdir(parents=True)
        (disk / f"vdz{number}/partition").write_text(number + "\n")
    (disk / "queue").mkdir()
    assert sysfs.partitions(disk) == [disk / "vdz1", disk / "vdz9"]
    assert sysfs.partitions(disk / "vdz1") == []
    assert probe.Device("/dev/vdz1", 1, disk / "vdz1").disk == disk
    assert probe.Device("/dev/vdz", 0, disk).disk == disk


def test_a_partition_of_a_listed_disk_is_refused(tmp_path) -> None:
    disk = tmp_path / "vdz"
    part = disk / "vdz1"
    part.mkdir(parents=True)
    (part / "partition").write_text("1\n")
    both = [
        probe.Device("/dev/vdz1", 1, part),
        probe.Device("/dev/vdz", 0, disk),
    ]
    for devices in (both, both[::-1]):
        with pytest.raises(probe.DeviceRefused, match="is a partition of"):
            probe._check_distinct(devices)


@pytest.mark.parametrize("edges", [(0, 0), (1, 0), (0, 1)])
def test_a_device_with_data_at_an_edge_is_not_empty(tmp_path, edges) -> None:
    file = tmp_path / "image"
    middle = b"x" * probe.EDGE
    first, last = (bytes([byte]) for byte in edges)
    pad = bytes(probe.EDGE - 1)
    file.write_bytes(first + pad + middle + pad + last)
    assert probe._edges_zero(str(file)) is (edges == (0, 0))


@pytest.mark.parametrize(
    "path, words",
    [
        ("sda", "not an absolute path"),
        ("/dev/disk/by-id/none-such", "does not exist"),
        ("/dev/a\0b", "does not exist"),
        ("/etc/passwd/x", "does not exist"),
        ("/etc/passwd", "not a block device"),
        ("/dev/null", "not a block device"),
        ("/dev/100%full\n", "does not exist"),
    ],
)
def test_a_path_that_names_no_device_is_refused(path: str, words: str) -> None:
    async def check() -> None:
        async with probe.checked([path]):
            pass

    with pytest.raises(probe.DeviceRefused, match=words) as caught:
        asyncio.run(check())
    sentence = str(caught.value)
    assert caught.value.device == path
    assert not sentence.endswith(".")
    assert sentence.isprintable() and "%" not in sentence


def test_run_returns_status_and_output() -> None:
    async def check() -> None:
        assert await commands.run("echo", "a b", "$HOME") == (0, "a b $HOME")
        assert await commands.run("false", ok=(1,)) == (1, "")
        _, seen = await commands.run("env")
        names = {line.partition("=")[0] for line in seen.splitlines()}
        assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_"}

    asyncio.run(check())


def test_run_raises_with_the_output() -> None:
    with pytest.raises(errors.CommandFailed, match="none-such") as caught:
        asyncio.run(commands.run("ls", "/none-such"))
    assert caught.value.code == 2
    assert "none-such" in caught.value.output
    with pytest.raises(
        errors.CommandFailed, match="is not installed"
    ) as caught:
        asyncio.run(commands.run("no-such-program"))
    assert caught.value.code == 127


def test_a_cancelled_run_waits_for_its_child() -> None:
    async def check() -> float:
        task = asyncio.ensure_future(commands.run("sleep", "0.5"))
        await asyncio.sleep(0.1)
        start = time.monotonic()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    assert asyncio.run(check()) > 0.2


def fake_run(monkeypatch, outcomes):
    """Replace commands.run(); return the list in which it records its calls."""
    calls = []

    async def run(*command, ok=(0,)):
        calls.append(command)
        outcome = outcomes.pop(0) if outcomes else ""
        if outcome:
            raise errors.CommandFailed("zpool create", 1, outcome)
        return 0, ""

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(commands, "PAUSES", (0, 0, 0))
    return calls


def test_create_zpool_runs_one_command_without_force(monkeypatch) -> None:
    called = fake_run(monkeypatch, [])
    asyncio.run(
        commands.create_zpool("tank", ["/dev/a"], "zstd", {"atime": "on"})
    )
    (command,) = called
    assert command[:2] == ("zpool", "create")
    assert command[-3:] == ("--", "tank", "/dev/a")
    assert "-f" not in command
    assert not any("ashift" in word for word in command)
    assert "compression=zstd" in command
    assert [word for word in command if "atime" in word] == ["atime=on"]


def test_create_zpool_retries_while_a_device_is_busy(monkeypatch) -> None:
    busy = "cannot open '/dev/a': Device or resource busy"
    called = fake_run(monkeypatch, [busy, busy])
    asyncio.run(commands.create_zpool("tank", ["/dev/a"], "lz4", {}))
    assert len(called) == 3

    called = fake_run(monkeypatch, [busy] * 9)
    with pytest.raises(errors.CommandFailed, match="busy"):
        asyncio.run(commands.create_zpool("tank", ["/dev/a"], "lz4", {}))
    assert len(called) == 4

    called = fake_run(monkeypatch, ["cannot create 'tank': pool exists"])
    with pytest.raises(errors.CommandFailed, match="exists"):
        asyncio.run(commands.create_zpool("tank", ["/dev/a"], "lz4", {}))
    assert len(called) == 1


@pytest.mark.parametrize("devices", [[], ["mirror", "/dev/a"], ["-f"]])
def test_create_zpool_accepts_only_paths(monkeypatch, devices) -> None:
    called = fake_run(monkeypatch, [])
    with pytest.raises(ValueError):
        asyncio.run(commands.create_zpool("tank", devices, "lz4", {}))
    assert not called


def test_no_zpool_is_imported_without_the_module() -> None:
    assert not commands.zpool_imported("")
    assert not commands.zpool_imported("no-such-zpool")
