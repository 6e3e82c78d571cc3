# SPDX-License-Identifier: BSD-2-Clause
"""Qubes in an encrypted pool.

The real service qubes.AskPassword shows its prompt by a stand-in for zenity.
qvm-zfs reads passphrases too.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .dom0 import (
    LOG,
    MIB,
    ROOT,
    STORE,
    datasets,
    is_alive,
    machine,
    read,
    record,
    until,
    write,
    zfs,
)

PASSPHRASE = "Tr0ub4dor and horse"
ROOT_OF_KEYS = "tank/encryption/safe"
CREATE = ("qvm-create", "-P", "safe", "-l", "red")


def key():
    command = ("zfs", "get", "-H", "-o", "value", "keystatus", ROOT_OF_KEYS)
    return zfs(*command)[0]


def lock(dom0):
    """Lock the pool, so that the next operation needs the passphrase."""
    dom0.run("qvm-zfs", "lock", "safe")
    assert key() == "unavailable"


@pytest.fixture(scope="module")
def safe(dom0, plain):
    """Create an encrypted pool with its key loaded; prompts are cancelled."""
    record("\n### the encrypted pool safe")
    options = [
        word
        for option in ("zpool_name=tank", "pbkdf2iters=100000")
        for word in ("-o", option)
    ]
    add = ("qvm-pool", "add", *options, "safe", "zfs_encrypted")
    dom0.answer()
    said = dom0.run(*add, status=1)
    assert said.count("Cannot add the pool safe") == 1
    assert "the passphrase prompt was cancelled" in said
    assert not any("encryption" in name for name in datasets("tank"))
    assert len(dom0.asked()) == 1

    dom0.answer(PASSPHRASE, "another passphrase", PASSPHRASE, PASSPHRASE)
    dom0.run(*add)
    assert ["did not match" in text for text in dom0.asked()] == [
        *(False, False, True, False)
    ]
    assert key() == "available"
    dom0.run("qvm-pool", "info", "safe", says="driver zfs_encrypted")
    dom0.answer()
    return "safe"


@pytest.fixture(scope="module")
def work(dom0, safe):
    dom0.run(*CREATE, "-t", "tmpl", "secret")
    dom0.run(*CREATE, "-C", "StandaloneVM", "vault")
    return "secret"


def test_bad_options_are_refused_in_one_line(dom0, safe):
    for options, says in (
        ((), "the option zpool_name is missing"),
        (("zpool_name=gone",), "gone"),
        (
            (f"zpool_name={ROOT_OF_KEYS}",),
            "is already encrypted (encryption root",
        ),
        (("zpool_name=tank", "pbkdf2iters=9"), "from 100000 to"),
        (("zpool_name=tank", "unload_timeout=soon"), "unload_timeout must"),
    ):
        words = [word for option in options for word in ("-o", option)]
        add = ("qvm-pool", "add", *words, "bad", "zfs_encrypted")
        said = dom0.run(*add, status=1, says=says)
        assert len(said.strip().splitlines()) == 1
    assert dom0.asked() == []


def test_reading_shows_no_prompt(dom0, work):
    lock(dom0)
    dom0.answer(PASSPHRASE)
    dom0.run("qvm-pool", "list", says="safe zfs_encrypted")
    dom0.run("qvm-pool", "info", "safe")
    dom0.run("qvm-volume", "list", says=("safe:secret/private",))
    dom0.run("qvm-volume", "info", "vault:root")
    dom0.run("qvm-ls")
    dom0.run("qvm-zfs", "status", says="locked")
    assert dom0.asked() == []
    assert key() == "unavailable"


def test_a_start_needs_the_passphrase_once(dom0, work):
    lock(dom0)
    dom0.answer("wrong one", PASSPHRASE)
    dom0.run("qvm-start", work)
    assert len(dom0.asked()) == 2
    assert read(work, "xvda", len(ROOT)) == ROOT
    write(work, "xvda", b"scribbled")
    write(work, "xvdb", b"kept secret")
    dom0.run("qvm-zfs", "lock", "safe", status=1, says="in use")
    dom0.shutdown(work)
    dom0.run("qvm-start", work)
    assert read(work, "xvda", len(ROOT)) == ROOT
    assert read(work, "xvdb", 11) == b"kept secret"
    dom0.run("qvm-kill", work)
    assert len(dom0.asked()) == 2


def test_three_wrong_passphrases_refuse_a_start(dom0, work):
    lock(dom0)
    dom0.answer("wrong one", "wrong two", "wrong three", PASSPHRASE)
    wrong = "the passphrase was wrong at each attempt"
    said = dom0.run("qvm-start", work, status=1, says=wrong)
    assert len(said.strip().splitlines()) == 1
    dom0.run("qvm-start", work, status=1, says="shows no other prompt before")
    assert len(dom0.asked()) == 3
    assert key() == "unavailable"


def test_an_unlocked_pool_shows_no_prompt(dom0, work):
    lock(dom0)
    dom0.answer()
    typed = f"{PASSPHRASE}\n".encode()
    dom0.run("qvm-zfs", "unlock", "safe", stdin=typed, says="is unlocked")
    dom0.cycle(work)
    assert dom0.asked() == []


def test_operations_work_in_an_encrypted_pool(dom0, work):
    lock(dom0)
    dom0.answer()
    volume = f"{work}:private"
    content = b"imported".ljust(5 * MIB + 3, b"!")
    dom0.import_file(volume, content, status=1, says="was cancelled")
    typed = f"{PASSPHRASE}\n".encode()
    dom0.run("qvm-zfs", "unlock", "safe", stdin=typed)
    dom0.import_file(volume, content)
    lock(dom0)
    dom0.answer(PASSPHRASE)
    dom0.import_file(volume, content)
    assert len(dom0.asked()) == 1
    dom0.run("qvm-volume", "resize", volume, "8MiB")
    dom0.import_file(
        volume, b"short", "--no-resize", status=1, says="not enough"
    )
    dom0.run("qvm-start", work)
    assert read(work, "xvdb", len(content)) == content
    write(work, "xvdb", b"written!")
    dom0.run("qvm-kill", work)
    dom0.run("qvm-volume", "revert", volume)
    dom0.run("qvm-clone", "-P", "safe", work, "copy")
    dom0.run("qvm-start", "copy")
    assert read("copy", "xvdb", len(content)) == content
    write("copy", "xvdb", b"its own!")
    dom0.run("qvm-kill", "copy")
    dom0.run("qvm-start", work)
    assert read(work, "xvdb", 8) == b"imported"
    dom0.shutdown(work)


def test_qubes_can_be_cloned_to_and_from_an_unencrypted_pool(dom0, work, plain):
    dom0.run("qvm-clone", "-P", plain, work, "bare")
    dom0.run("qvm-start", "bare")
    assert read("bare", "xvdb", 8) == b"imported"
    write("bare", "xvdb", b"stranger")
    dom0.shutdown("bare")
    dom0.run("qvm-clone", "-P", "safe", "bare", "again")
    dom0.run("qvm-start", "again")
    assert read("again", "xvdb", 8) == b"stranger"
    dom0.shutdown("again")
    dom0.run("qvm-remove", "-f", "bare", "again")


def test_a_volume_outside_the_encrypted_pool_is_reported(dom0, safe):
    create = ("qvm-create", "-l", "red", "-t", "tmpl")
    dom0.run(*create, "--pool", "private=safe", "part")
    pool = ("qvm-volume", "info", "part:private", "pool")
    assert dom0.run(*pool) == "safe\n"
    assert "part: its volume volatile is written to the pool" in dom0.said()
    dom0.run("qvm-remove", "-f", "part")


def succeeds(*command):
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def newest(dom0, qube):
    """Return the number of the newest revision; 0 if there is none."""
    revisions = dom0.revisions(f"{qube}:private")
    return int(revisions[-1].removeprefix("r")) if revisions else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_key_and_session_survive_a_restart(dom0, work, number):
    dom0.run("qvm-start", work)
    write(work, "xvdb", number.name.encode().ljust(8))
    dom0.stop(number)
    assert key() == "available"
    dom0.start()
    before = newest(dom0, work)
    dom0.shutdown(work)
    assert newest(dom0, work) == before + 1
    lock(dom0)
    # qubesd starts with a locked pool
    dom0.stop(number)
    dom0.answer()
    dom0.start()
    assert dom0.asked() == []
    dom0.answer(PASSPHRASE)
    dom0.run("qvm-start", work)
    assert len(dom0.asked()) == 1
    assert read(work, "xvdb", 7) == number.name.encode()
    dom0.shutdown(work)


def test_a_session_that_ends_without_qubesd_is_committed(dom0, work):
    """No prompt appears for the commit."""
    dom0.run("qvm-start", work)
    write(work, "xvdb", b"at its end")
    before = newest(dom0, work)
    dom0.stop(signal.SIGKILL)
    os.kill(machine(work)["pid"], signal.SIGTERM)
    until(lambda: not is_alive(machine(work)["pid"]), "the qube ends")
    dom0.answer()
    dom0.start()
    assert newest(dom0, work) == before + 1
    # qubesd has closed all volumes, the volatile one too
    lock(dom0)
    assert dom0.asked() == []
    dom0.answer(PASSPHRASE)
    dom0.run("qvm-start", work)
    assert read(work, "xvdb", 10) == b"at its end"
    dom0.shutdown(work)


def test_the_prompt_closes_when_qubesd_dies(dom0, work):
    lock(dom0)
    dom0.answer("SLEEP", PASSPHRASE)
    call = dom0.begin("qvm-start", work)
    until(dom0.asked, "the prompt appears")
    dom0.stop(signal.SIGKILL)
    assert call.end()[0]
    asking = ("pgrep", "-f", "zfs.keyholder|qubes.AskPassword|zenity")
    until(
        lambda: not succeeds(*asking), "all processes of the prompt have ended"
    )
    dom0.start()
    assert key() == "unavailable"
    dom0.answer(PASSPHRASE)
    dom0.cycle(work)


def test_removed_qubes_leave_no_datasets(dom0, work):
    """A removal works without the key too."""
    dom0.answer()
    dom0.run("qvm-pool", "remove", "safe", status=1, says="in use")
    dom0.run("qvm-remove", "-f", work, "vault", "copy")
    assert datasets(ROOT_OF_KEYS) == [ROOT_OF_KEYS]
    dom0.run("qvm-pool", "remove", "safe")
    assert datasets(ROOT_OF_KEYS) == [ROOT_OF_KEYS]
    assert dom0.asked() == []


def test_an_encrypted_pool_can_be_added_again(dom0):
    options = ("-o", "zpool_name=tank", "-o", "unload_timeout=5")
    add = ("qvm-pool", "add", *options, "safe", "zfs_encrypted")
    dom0.answer("wrong one", "wrong two", "wrong three")
    dom0.run(*add, status=1, says="the passphrase was wrong at each attempt")
    dom0.answer(PASSPHRASE)
    dom0.run(*add)
    assert key() == "available"
    # no volume uses the key
    until(lambda: key() == "unavailable", "the key is unloaded", 120)
    dom0.run("qvm-pool", "remove", "safe")
    zfs("zfs", "destroy", "-r", "tank/encryption")


def test_no_log_has_the_passphrase():
    for file in (LOG, STORE, Path("/var/log/syslog")):
        assert PASSPHRASE.encode() not in file.read_bytes()
