# SPDX-License-Identifier: BSD-2-Clause
"""Commands of qvm-zfs."""

import os
import pty
import re

import pytest

from qubes_storage_zfs.driver import keytimer

from ..support.prompts import PASSPHRASE
from ..support.tool import COMMAND, qvm_zfs, status

pytestmark = pytest.mark.side_b


def test_lock_unloads_and_unlock_loads_the_key(safe):
    name = safe.name
    assert qvm_zfs("lock", name) == (0, f"{name} is locked\n", "")
    assert safe.is_locked() and status(safe)["state"] == "locked"
    assert qvm_zfs("lock", name) == (0, f"{name} is already locked\n", "")
    code, out, err = qvm_zfs("unlock", name, given=b"wrong one\n" * 3)
    assert code == 1 and not out and safe.is_locked()
    assert err.startswith("qvm-zfs unlock: the passphrase was wrong at each")
    code, out, err = qvm_zfs("unlock", name)
    assert (code, out, err) == (
        1,
        "",
        "qvm-zfs unlock: no passphrase was entered, because the standard input"
        " ended; run the command again\n",
    )
    code, out, err = qvm_zfs("unlock", name, given=b"wrong one\n" + PASSPHRASE)
    assert code == 1 and "no passphrase was entered" in err
    given = b"wrong one\n" + PASSPHRASE + b"\n"
    assert qvm_zfs("unlock", name, given=given)[:2] == (
        0,
        f"{name} is unlocked\n",
    )
    assert not safe.is_locked() and status(safe)["state"] == "unlocked"
    assert qvm_zfs("unlock", name)[1] == f"{name} is already unlocked\n"


def test_unlock_at_a_terminal_hides_the_passphrase(safe):
    assert qvm_zfs("lock", safe.name)[0] == 0
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "unlock", safe.name])
    shown = b""
    for answer in (b"not this one", PASSPHRASE):
        while not re.search(rb"Passphrase of the pool [^:\n]*: \Z", shown):
            shown += os.read(terminal, 1000)
        os.write(terminal, answer + b"\n")
        shown += b"\n"
    try:
        while True:
            shown += os.read(terminal, 1000)
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"The passphrase was wrong." in shown and b"is unlocked" in shown
    assert PASSPHRASE not in shown and b"not this one" not in shown
    assert not safe.is_locked()


def test_status_and_lock_name_the_process_that_uses_a_pool(safe):
    volume = safe.private(content=b"one")
    path = safe.run(volume.export())
    with open(path, "rb"):
        mine = f"process {os.getpid()} ("
        report = status(safe)
        (names,) = report["holders"].values()
        assert report["holders"].keys() == {"work/private.1"}
        assert names[0].startswith(mine) and report["unloaded_in"] is None
        code, out, err = qvm_zfs("lock", "--all")
        assert code == 1 and f"work/private.1: {mine}" in err
        assert f"work/private.1 is in use by {mine}" in qvm_zfs("status")[1]
    safe.run(volume.export_end(path))
    assert qvm_zfs("lock", safe.name)[0] == 0


def test_status_reports_seconds_until_the_key_is_unloaded(safe):
    key = safe.pool.key
    key._announce(keytimer.now() + 100)
    report = status(safe)
    assert 0 < report["unloaded_in"] < 100
    assert re.search(
        r"unlocked; the key will be unloaded in \d+ s", qvm_zfs("status")[1]
    )
    key._announce(None)
    assert status(safe)["unloaded_in"] is None


def test_passwd_changes_the_passphrase(safe):
    name, new = safe.name, b"another passphrase"
    given = b"\n".join([PASSPHRASE, new, new, b""])
    code, out, _ = qvm_zfs("passwd", name, given=given)
    assert (code, out) == (0, f"the passphrase of {name} was changed\n")
    assert qvm_zfs("lock", name)[0] == 0
    assert qvm_zfs("unlock", name, given=PASSPHRASE + b"\n" * 3)[0] == 1
    # a locked pool is locked again afterwards
    given = b"\n".join([new, PASSPHRASE, PASSPHRASE, b""])
    assert qvm_zfs("passwd", name, given=given)[0] == 0
    assert safe.is_locked()
    assert qvm_zfs("unlock", name, given=PASSPHRASE + b"\n")[0] == 0


def test_misuse_prints_one_line(safe, make_lab):
    plain = make_lab()
    code, _, err = qvm_zfs("unlock", "nothing")
    assert (code, err.count("\n")) == (1, 1) and "there is no ZFS pool" in err
    code, _, err = qvm_zfs("lock", plain.name)
    assert code == 1 and f"{plain.name} is not encrypted" in err
    assert qvm_zfs("lock")[0] == qvm_zfs("frobnicate")[0] == 2
    assert qvm_zfs("passwd", safe.name, "--pbkdf2iters", "5")[0] == 2
    code, out, _ = qvm_zfs("status", "nothing")
    assert code == 1 and "no such ZFS pool" in out
