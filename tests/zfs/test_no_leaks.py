# SPDX-License-Identifier: BSD-2-Clause
"""Places where a passphrase or its key must never be."""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qubes_storage_zfs.store import holder

from ..support.memory import KEYHOLDER, memory, processes_with
from ..support.programs import programs
from ..support.waiting import until
from ..support.zpools import MIB, another_zpool, disk_of, sectors, sh, value

pytestmark = pytest.mark.side_b

PASSPHRASE = b"Tr0ub4dor and three more words"
#: outside the folders that the tests search
SAID = Path("/dev/shm/what-a-person-says")
ZENITY = Path("/usr/local/bin/zenity")
ZPOOL, DISK = "leaks", disk_of("leaks")
#: folders of persistent files
FOLDERS = ("/run", "/tmp", "/var", "/etc", "/root/.cache")
OURS = Path(__file__).parents[2] / "qubes_storage_zfs"


@pytest.fixture
def person():
    """Answer each prompt of the packaged service, or leave it open."""
    ZENITY.write_text(
        f"#!/bin/sh\n[ -e {SAID} ] || exec sleep 600\nexec cat {SAID}\n"
    )
    ZENITY.chmod(0o755)
    SAID.write_bytes(PASSPHRASE + b"\n")
    yield SAID
    SAID.unlink(missing_ok=True)
    ZENITY.unlink()


@pytest.fixture
def disk():
    """Create a zpool on a new disk."""
    with another_zpool(ZPOOL, *sectors()):
        yield DISK


class Keeper:
    """A process of tests.support.keeper, its output and its children."""

    def __init__(self, name, *options):
        self.name = name
        self.root = f"{ZPOOL}/encryption/{name}"
        self.stderr = Path(f"/tmp/stderr-of-{name}")
        with open(self.stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.support.keeper"),
                    *(ZPOOL, name, *options),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            )

    def tell(self, word):
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def heard(self, word):
        line = self.process.stdout.readline().decode().strip()
        assert line == word, (line, self.stderr.read_text())

    def does(self, *words):
        for word in words:
            self.tell(word)
            self.heard("done")

    def children(self):
        path = f"/proc/{self.process.pid}/task"
        pids = []
        for task in os.listdir(path):
            with contextlib.suppress(OSError):
                text = Path(path, task, "children").read_text()
                pids += [int(pid) for pid in text.split()]
        return pids

    def keyholder(self):
        """Return its PID once its memory is locked, which is before the prompt."""

        def with_locked_memory():
            for pid in processes_with(KEYHOLDER):
                text = Path(f"/proc/{pid}/status").read_text()
                if int(re.search(r"VmLck:\s+(\d+)", text)[1]) > 4096:
                    return pid

        return until(with_locked_memory, "a keyholder has locked its memory")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.stderr.unlink(missing_ok=True)


@pytest.fixture
def make_keeper(disk, person):
    begun = []

    def begin(*options):
        begun.append(Keeper("leaks" + str(time.monotonic_ns()), *options))
        return begun[-1]

    yield begin
    for item in begun:
        item.end()


def wrapping_key(root):
    iterations = value(root, "pbkdf2iters")
    salt = struct.pack("<Q", int(value(root, "pbkdf2salt")))
    return hashlib.pbkdf2_hmac("sha1", PASSPHRASE, salt, int(iterations), 32)


def secrets_of(root):
    key = wrapping_key(root)
    return PASSPHRASE, key, key.hex().encode()


def output(*command):
    """Return the output as bytes; the history of a zpool is not all text."""
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def written_since(begin):
    """Yield the persistent files that were written since *begin*."""
    for top in (*FOLDERS, str(OURS)):
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    if path.is_symlink() or not path.is_file():
                        continue
                    # the zpool of other tests
                    if path.stat().st_mtime >= begin and name != "tank.img":
                        yield path


def data_of(path):
    """Yield the data of a file, without holes, in overlapping pieces."""
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            yield os.pread(file.fileno(), MIB + 512, at)
            at += MIB


def found_in(path, needles):
    return {item for data in data_of(path) for item in needles if item in data}


def test_passphrase_and_key_are_not_leaked(make_keeper):
    begin = time.time() - 1
    with programs() as seen:
        keeper = make_keeper()
        # in use: the kernel has the key, and only the kernel
        keeper.does("add", "lock", "write")
        assert not list(processes_with(KEYHOLDER))
        loaded = memory(keeper.process.pid)
        keeper.does("lock")
        subprocess.run(["true", "an argument"], check=True)
    sh("zpool", "sync", ZPOOL)
    secrets = secrets_of(keeper.root)
    unloaded = memory(keeper.process.pid)
    # the search works: it finds another text
    root = keeper.root.encode()
    assert root in loaded and root in unloaded
    for secret in secrets:
        assert secret not in loaded and secret not in unloaded
    # programs: the service, the prompt, the keyholder, and the shortest one
    assert not seen.missed
    for word in b"qubes.AskPassword", b"keyholder", b"zenity", b"an argument":
        assert any(word in words for words in seen.seen), word
    for secret in secrets:
        assert not any(secret in words for words in seen.seen)
    # persistent: files, the disk, the history of the zpool, the journal
    files = list(written_since(begin))
    visible = holder.SECRET.with_name(f"{keeper.name}.json")
    assert {keeper.stderr, DISK, visible} <= set(files)
    for path in files:
        assert not found_in(path, secrets), path
    history = output("zpool", "history", "-il", ZPOOL)
    assert root in history
    for secret in secrets:
        assert secret not in history
        assert secret not in output("journalctl", "-a", "--no-pager")


def test_keyholder_locks_its_memory_and_dumps_no_core(make_keeper, person):
    keeper = make_keeper()
    keeper.does("add", "lock")
    person.unlink()
    keeper.tell("ask")
    keeper.heard("asking")
    # locked memory is not swapped out
    limits = Path(f"/proc/{keeper.keyholder()}/limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0\s", limits)


def keyholder(root, after=""):
    """Run the keyholder as keys.py does, then the code *after*."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv.pop(1))\n"
        "from qubes_storage_zfs.zfs.keyholder import main\n"
        "main(sys.argv[1:])\n"
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-c", code + after),
            *(str(OURS.parent), "load", root, "{}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_keyholder_wipes_passphrase_and_key(make_keeper):
    """After a process exits, its data stays in free memory."""
    keeper = make_keeper()
    keeper.does("add", "lock")
    after = "print('over', flush=True)\ntime.sleep(600)"
    with keyholder(keeper.root, after) as process:
        try:
            process.stdin.write(PASSPHRASE + b"\n")
            process.stdin.flush()
            while (line := process.stdout.readline()) != b"over\n":
                assert line
            seen = memory(process.pid)
        finally:
            process.kill()
    assert value(keeper.root, "keystatus") == "available"
    assert keeper.root.encode() in seen
    # the allocator overwrites a part of what is freed
    key = wrapping_key(keeper.root)
    for piece in pieces(PASSPHRASE) | pieces(key, 8):
        assert piece not in seen
    keeper.does("lock")


def test_keyholder_dumps_no_core_with_a_raised_limit(make_keeper):
    """The limit is raised after the start of the keyholder."""
    keeper = make_keeper()
    keeper.does("add", "lock")
    pattern = Path("/proc/sys/kernel/core_pattern")
    before, folder = pattern.read_text(), Path("/tmp/cores")
    folder.mkdir()
    pattern.write_text(f"{folder}/core-%p")
    other = subprocess.Popen(["sleep", "600"])
    process = keyholder(keeper.root)
    try:
        assert process.stdout.readline() == b"unlock\n"
        assert dumps_core(other) and not dumps_core(process)
        assert [path.name for path in folder.iterdir()] == [f"core-{other.pid}"]
    finally:
        pattern.write_text(before)
        shutil.rmtree(folder)
        for item in other, process:
            item.kill()
            item.wait()


def dumps_core(process):
    """Raise the limit and crash the process; return whether it dumps core."""
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(process.pid, resource.RLIMIT_CORE, (unlimited, unlimited))
    process.send_signal(signal.SIGSEGV)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGSEGV
    return os.WCOREDUMP(status)


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_killed_qubesd_closes_the_prompt(make_keeper, person):
    keeper = make_keeper()
    keeper.does("add", "lock")
    person.unlink()
    keeper.tell("ask")
    keeper.heard("asking")
    keeper.keyholder()
    children = until(
        lambda: len(pids := keeper.children()) > 1 and pids,
        "the keyholder and the prompt are there",
        seconds=60,
    )
    before = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", keeper.root)
    keeper.process.kill()
    keeper.process.wait()
    until(lambda: not any(map(alive, children)), "all have ended")
    assert value(keeper.root, "keystatus") == "unavailable"
    after = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", keeper.root)
    assert after == before


# --- data on disk that is readable without the key

NAMES = {b"journalist", b"private"}


def pieces(text, length=10):
    """Return the parts of a text; properties are on disk in 21-byte pieces."""
    return {text[at : at + length] for at in range(len(text) - length + 1)}


def test_locked_disk_shows_only_the_documented_names(make_keeper):
    """The visible names are exactly those in encryption.md."""
    identities = []

    def found_after(*options):
        keeper = make_keeper(*options)
        keeper.does("add", "write", "lock")
        sh("zpool", "sync", ZPOOL)
        identities.append(holder._identity(keeper.process.pid))
        visible = keeper.name.encode(), os.uname().nodename.encode()
        marks = pieces(holder._marked(identities[-1]).encode())
        hidden = set.union(*(pieces(one.encode()) for one in identities))
        matches = found_in(DISK, {*visible, *marks, *hidden, *NAMES})
        # the pool, the host and the mark are visible; the process is not
        assert matches.issuperset(visible) and matches & marks
        assert not matches & hidden
        return matches & NAMES

    assert not found_after("opaque_names=True")
    assert found_after() == NAMES
