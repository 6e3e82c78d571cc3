# SPDX-License-Identifier: BSD-2-Clause
"""Forged values on disks: marks of other pools, and control characters."""

import json
import subprocess

import pytest

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import importexport, keys

from ..support.lab import EncryptedLab, configure, create_encrypted
from ..support.prompts import PASSPHRASE
from ..support.tool import qvm_zfs
from ..support.zpools import another_zpool, open_device, sh

pytestmark = pytest.mark.side_a

#: control characters for terminals and for parsers of lines and tabs
EVIL = b"\x1b]0;x\x07two\n\tlines\r\xff\xc2\x9b31m" + b"x" * 500
GIVEN = PASSPHRASE + b"\n"


@pytest.fixture
def claim():
    """Create a zpool, as another system does."""
    with another_zpool("claim") as name:
        yield name
    common.QUBES_XML.unlink(missing_ok=True)


def is_locked(lab, dataset):
    return lab.run(keys.state(dataset)).locked


def mark(dataset, value):
    name = naming.CLAIM.encode()
    subprocess.run(["zfs", "set", name + b"=" + value, dataset], check=True)


def is_plain(text):
    return text.replace("\n", "").isprintable()


def test_commands_refuse_a_name_that_two_datasets_claim(safe, claim):
    name = safe.name
    theirs = f"{claim}/encryption/{name}"
    create_encrypted(theirs, name)
    # neither dataset is configured
    for command in "lock", "unlock", "passwd", "detach":
        code, out, err = qvm_zfs(command, name, given=GIVEN)
        assert (code, out) == (1, "") and safe.container in err
        assert theirs in err and "several datasets are marked" in err
    assert not is_locked(safe, safe.container) and not is_locked(safe, theirs)
    # the name means the configured dataset
    config = {**safe.pool.config, "zpool_guid": importexport.guid("tank")}
    configure(config)
    assert qvm_zfs("lock", name) == (0, f"{name} is locked\n", "")
    assert is_locked(safe, safe.container) and not is_locked(safe, theirs)
    assert qvm_zfs("unlock", name, given=GIVEN)[0] == 0
    assert not is_locked(safe, safe.container)
    both = {
        pool["dataset"]: (pool["configured"], pool["state"])
        for pool in json.loads(qvm_zfs("status", "--json", name)[1])["pools"]
    }
    unlocked = {safe.container: (True, "unlocked"), theirs: (False, "unlocked")}
    assert both == unlocked
    assert f"{theirs}  unlocked, not configured" in qvm_zfs("status", name)[1]
    # the imported zpool has the name of the pool's zpool, but another GUID
    configure({**config, "zpool_guid": "1"})
    for command in "lock", "unlock", "passwd", "detach", "attach":
        code, out, err = qvm_zfs(command, name, given=GIVEN)
        assert (code, out) == (1, "") and "with the GUID 1" in err, command
    assert not is_locked(safe, safe.container)
    assert "another zpool (" in qvm_zfs("status", name)[1]
    # the configured dataset is marked for another pool
    configure(config)
    mark(safe.container, b"another")
    for command in "unlock", "passwd":
        assert "belongs to the pool another" in qvm_zfs(command, name)[2]
    assert "marked as another pool's" in qvm_zfs("status", name)[1]
    common.QUBES_XML.write_text("<qubes>")
    code, _, err = qvm_zfs("lock", name)
    assert code == 1 and "cannot be read" in err


def test_lock_all_continues_after_errors(safe, claim):
    """One dataset is in use, one has an invalid mark, one an unsupported name."""
    volume = safe.private(content=b"one")
    other = EncryptedLab("tank")
    absent = {**other.pool.config, "name": "away", "zpool_name": "away"}
    configure(safe.pool.config, other.pool.config, absent)
    evil, odd = f"{claim}/encryption/evil", f"{claim}/odd name"
    create_encrypted(evil, "evil")
    mark(evil, EVIL)
    create = "zfs", "create", "-o", "encryption=on", "-o", "pbkdf2iters=100000"
    options = "-o", "keyformat=passphrase", "-o", "canmount=off"
    subprocess.run([*create, *options, odd], input=GIVEN, check=True)
    mark(odd, b"odd")
    path = safe.run(volume.export())
    with open_device(path, 0):
        code, out, err = qvm_zfs("lock", "--all")
    safe.run(volume.export_end(path))
    assert code == 1 and is_plain(out) and is_plain(err)
    assert f"{other.name} is locked\n" in out and f"({evil}) is locked" in out
    assert is_locked(safe, evil) and is_locked(safe, other.container)
    assert not is_locked(safe, safe.container)
    assert (
        f"qvm-zfs lock: {safe.name}: " in err
        and f"{odd} is still unlocked" in err
    )
    assert "away" not in out + err
    sh("zfs", "unload-key", odd)
    code, out, err = qvm_zfs("lock", "--all")
    assert code == 0 and f"{safe.name} is locked\n" in out, err


def test_control_characters_are_escaped(safe, claim):
    mark(claim, EVIL)
    sh("zfs", "create", f"{claim}/a b")
    mark(f"{claim}/a b", safe.name.encode() + b"\n\tx")
    configure(safe.pool.config)
    code, out, err = qvm_zfs("status")
    assert code == 0 and is_plain(out) and is_plain(err)
    shown = r"\x1b]0;x\x07two\x0a\x09lines\x0d\xff"
    assert shown in out and "x" * 300 not in out
    code, out, _ = qvm_zfs("status", "--json")
    assert code == 0 and is_plain(out)
    names = {pool["name"] for pool in json.loads(out)["pools"]}
    assert EVIL.decode(errors="surrogateescape") in names
    assert qvm_zfs("lock", "x\x1b[2J")[2].endswith("them\n")
    for words in ("lock", EVIL), ("frobnicate\x1b[2J",), ("lock", "-\x1b"):
        code, out, err = qvm_zfs(*words)
        assert code and not out and is_plain(err), words
