# SPDX-License-Identifier: BSD-2-Clause
"""Holder marks identify living processes and reveal nothing else."""

import os
import re
import subprocess
import sys

import pytest

from qubes_storage_zfs.store import holder


@pytest.fixture(autouse=True)
def secret(monkeypatch, tmp_path):
    path = tmp_path / "run" / "holder-secret"
    monkeypatch.setattr(holder, "SECRET", path)
    drop_caches()
    yield path
    drop_caches()


def drop_caches():
    """Drop the cached secret and mark, as in another process."""
    holder._secret.cache_clear()
    holder.mark.cache_clear()


def other_process(secret, code="print(holder.mark(), flush=True)"):
    setting = (
        "import sys; from pathlib import Path\n"
        "from qubes_storage_zfs.store import holder\n"
        f"holder.SECRET = Path({str(secret)!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", setting + code + "\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )


def test_a_mark_identifies_a_living_process(secret):
    with other_process(secret) as process:
        mark = process.stdout.readline().strip()
        assert mark != holder.mark()
        living = holder.Living()
        assert mark in living and holder.mark() in living
        process.stdin.close()
        process.wait()
    assert mark not in holder.Living()
    assert holder.mark() in holder.Living()


def test_a_mark_does_not_reveal_its_process(secret):
    mark = holder.mark()
    assert re.fullmatch(r"[0-9a-f]{64}", mark)
    boot, pid, start = holder._identity(os.getpid()).split(":")
    for part in boot, boot[:8], f"{pid}:", f":{start}":
        assert part not in mark
    assert secret.stat().st_mode & 0o7777 == 0o600
    # the same process has another mark with another secret
    secret.unlink()
    drop_caches()
    assert holder.mark() != mark


def test_a_mark_of_another_boot_belongs_to_no_living_process(secret):
    mark = holder.mark()
    secret.unlink()
    drop_caches()
    assert mark not in holder.Living()


def test_marks_of_older_releases_are_understood():
    identity = holder._identity(os.getpid())
    boot, pid, start = identity.split(":")
    living = holder.Living()
    assert identity in living
    for dead in (
        f"{boot}:{pid}:{int(start) + 1}",
        f"{boot[::-1]}:{pid}:{start}",
        f"{boot}:{pid}",
        "unknown",
        "",
        "x:y:z\n",
    ):
        assert dead not in living


def test_processes_that_start_together_share_one_secret(secret):
    code = "print(holder._secret().hex(), flush=True)"
    processes = [other_process(secret, code) for _ in range(4)]
    seen = {process.stdout.readline().strip() for process in processes}
    for process in processes:
        process.communicate()
    assert seen == {secret.read_bytes().hex()}
    assert len(secret.read_bytes()) == holder.SECRET_LENGTH
    assert list(secret.parent.iterdir()) == [secret]


def test_without_a_secret_other_processes_count_as_dead(monkeypatch):
    monkeypatch.setattr(holder, "SECRET", holder.Path("/proc/no/secret"))
    assert holder.mark() in holder.Living()
    with other_process("/proc/no/secret") as process:
        assert process.stdout.readline().strip() not in holder.Living()
        process.stdin.close()
