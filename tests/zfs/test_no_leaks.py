"""Where a passphrase and its key must never be found."""

import contextlib
import hashlib
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from .conftest import sh

PASSPHRASE = b"Tr0ub4dor and three more words"


class Keeper:
    """tests.zfs.keeper, and who else is there meanwhile."""

    def __init__(self, zpool, name, folder):
        self.root = f"{zpool}/encryption/{name}"
        file = folder / "passphrase"
        file.write_bytes(PASSPHRASE + b"\n")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zfs.keeper", zpool, name, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )

    def tell(self, word):
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def heard(self, word):
        line = self.process.stdout.readline().decode().strip()
        assert line == word, (line, self.process.stderr.read())

    def does(self, word):
        self.tell(word)
        self.heard("done")

    def children(self):
        path = f"/proc/{self.process.pid}/task"
        found = []
        for task in os.listdir(path):
            with contextlib.suppress(OSError):
                text = Path(path, task, "children").read_text()
                found += [int(pid) for pid in text.split()]
        return found

    def end(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def keeper(zpool, tmp_path):
    name = "leaks" + str(time.monotonic_ns())
    keeper = Keeper(zpool, name, tmp_path)
    yield keeper
    keeper.end()


def memory(pid):
    """All that a process has in its memory."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().split("\n"):
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match and "[v" not in line:
                start, end = (int(part, 16) for part in match.groups())
                with contextlib.suppress(OSError, ValueError):
                    mem.seek(start)
                    found.append(mem.read(end - start))
    return b"".join(found)


def wrapping_key(root):
    salt, iterations = sh(
        *("zfs", "get", "-Hpo", "value", "pbkdf2salt,pbkdf2iters"), root
    ).split("\n")
    salt = struct.pack("<Q", int(salt))
    return hashlib.pbkdf2_hmac("sha1", PASSPHRASE, salt, int(iterations), 32)


def output(*command):
    """Bytes; a history has what is no text in it, too."""
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


class Watcher(threading.Thread):
    """Collects what any process shows of itself."""

    def __init__(self):
        super().__init__()
        self.over = False
        self.seen = set()

    def run(self):
        while not self.over:
            for process in Path("/proc").glob("[0-9]*"):
                if process.name == str(os.getpid()):
                    continue
                for kind in "cmdline", "environ":
                    with contextlib.suppress(OSError):
                        self.seen.add((process / kind).read_bytes())
            time.sleep(0.02)


def test_passphrase_and_key_are_nowhere(keeper):
    watcher = Watcher()
    watcher.start()
    try:
        keeper.does("add")
        keeper.does("lock")
        keeper.does("write")
        # in use: the kernel has the key, and only the kernel
        loaded = memory(keeper.process.pid)
        keeper.does("lock")
    finally:
        watcher.over = True
        watcher.join()
    key = wrapping_key(keeper.root)
    unloaded = memory(keeper.process.pid)
    # what is looked for would be found
    assert keeper.root.encode() in loaded and keeper.root.encode() in unloaded
    for secret in (PASSPHRASE, key, key.hex().encode()):
        assert secret not in loaded and secret not in unloaded
    assert any(b"keyholder" in words for words in watcher.seen)
    assert not any(PASSPHRASE in words for words in watcher.seen)
    history = output("zpool", "history", "-il", keeper.root.split("/")[0])
    assert keeper.root.encode() in history
    for secret in (PASSPHRASE, key, key.hex().encode()):
        assert secret not in history
    assert PASSPHRASE not in output("journalctl", "-a", "--no-pager")


def keyholder_of(keeper):
    for pid in keeper.children():
        with contextlib.suppress(OSError):
            if b"keyholder" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def test_keyholder_leaves_no_core_and_no_swap(keeper):
    keeper.does("add")
    keeper.does("lock")
    keeper.tell("ask")
    keeper.heard("asking")
    locked = 0
    while not locked:
        pid = keyholder_of(keeper)
        if pid is not None:
            text = Path(f"/proc/{pid}/status").read_text()
            locked = int(re.search(r"VmLck:\s+(\d+)", text)[1])
        time.sleep(0.1)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0\s", limits)
    assert locked > 4096


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_killed_qubesd_closes_the_prompt(keeper):
    keeper.does("add")
    keeper.does("lock")
    keeper.tell("ask")
    keeper.heard("asking")
    children = []
    while len(children) < 2:
        children = keeper.children()
        time.sleep(0.1)
    before = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", keeper.root)
    keeper.process.kill()
    keeper.process.wait()
    for _ in range(100):
        if not any(alive(pid) for pid in children):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in children)
    assert sh("zfs", "get", "-Ho", "value", "keystatus", keeper.root) == (
        "unavailable"
    )
    after = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", keeper.root)
    assert after == before
