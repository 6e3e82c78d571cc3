# SPDX-License-Identifier: BSD-2-Clause
"""Foreign datasets with names that this driver never uses, UTF-8 or not."""

import logging
import time

import pytest

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.zfs import lzc, zcp

from ..support.tool import qvm_zfs
from ..support.zpools import sh

MAKE = b"""
local argv = (...).argv
local errno = zfs.sync.snapshot(argv.snapshot)
if errno == 0 and zfs.sync.clone ~= nil then
    errno = zfs.sync.clone(argv.snapshot, argv.clone)
end
return errno
"""
FIND = b"""
local argv = (...).argv
return zfs.exists(argv.snapshot)
    and (zfs.sync.clone == nil or zfs.exists(argv.clone))
"""


def program(text, arguments):
    library = lzc.library()
    limits = 1_000_000, 10 << 20
    return library.lzc_channel_program(b"tank", text, *limits, arguments)


def test_bytes_from_disk_survive_decoding_and_encoding():
    for value in b"\xff\x1b", "é\n".encode(), b"":
        assert zcp.encode(zcp.decode(value)) == value


def test_datasets_with_foreign_names_are_kept(lab, caplog):
    """A snapshot, and since OpenZFS 2.4 a volume, whose name is not UTF-8."""
    caplog.set_level(logging.DEBUG)
    volume = lab.private(content=b"one")
    qube = f"{lab.pool.qubes_root}/work"
    qubes_root = lab.pool.qubes_root.encode()
    strange = {
        b"snapshot": volume.dataset.encode() + b"@odd\xff",
        b"clone": qubes_root + b"/work/odd\xff",
    }
    assert program(MAKE, strange) == 0
    sh("zfs", "create", "-s", "-V", "4m", f"{qube}/my volume")
    sh("zfs", "create", "-o", "canmount=off", f"{lab.pool.qubes_root}/my qube")
    pointer = f"{naming.POINTER}private=0"
    sh("zfs", "create", "-o", "canmount=off", f"{lab.pool.qubes_root}/a b")
    sh("zfs", "set", pointer, f"{lab.pool.qubes_root}/a b")
    lab.restart()
    volume = lab.again(volume)
    lab.session(volume, b"two")
    assert lab.content(volume) == b"two"
    assert [item.vid for item in lab.pool.list_volumes()] == ["work/private"]
    time.sleep(1)
    lab.run(lab.pool.store.collect_garbage())
    for item in f"{qube}/my volume", f"{lab.pool.qubes_root}/my qube":
        assert sh("zfs", "list", "-Ho", "name", item) == item
    assert program(FIND, strange)
    assert qvm_zfs("status", lab.name)[0] == 0
    for record in caplog.records:
        assert record.getMessage().isprintable()
    lab.run(volume.revert(list(volume.revisions)[-1]))
    assert lab.content(volume) == b"one"
    assert program(FIND, strange)


@pytest.mark.parametrize("value", [b"\x1b[2J\xff\n", b"\xff" * 9])
def test_log_lines_are_printable(caplog, value):
    text = value.decode(errors="surrogateescape")
    lzc.LOG.warning("%s stays", text)
    lzc.LOG.warning("%s", lzc.errors.NotFound(text, 2, "destroy"))
    for record in caplog.records:
        record.getMessage().encode()
        assert record.getMessage().isprintable()
