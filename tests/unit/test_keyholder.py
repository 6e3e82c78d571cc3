# SPDX-License-Identifier: BSD-2-Clause
"""The keyholder and the functions that start it, without ZFS."""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_storage_zfs.store import messages
from qubes_storage_zfs.zfs import (
    answers,
    commands,
    keyholder,
    keys,
    runtime,
    secrecy,
)
from qubes_storage_zfs.zfs.errors import Silent, WrongPassphrase, ZfsError
from qubes_storage_zfs.zfs.keywords import Action, End, Purpose, Request


async def prompt(purpose, _):
    """Answer nothing, because the stand-in reads no answer."""


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that replaces the keyholder by a script; $2 is the root."""

    def put(script):
        monkeypatch.setattr(keys.sys, "executable", "/bin/sh")
        monkeypatch.setattr(keys, "_START", script)
        # sh has no -I
        monkeypatch.setattr(
            keys.asyncio, "create_subprocess_exec", without_isolation
        )

    start = asyncio.create_subprocess_exec

    async def without_isolation(*words, **options):
        return await start(*(w for w in words if w != "-I"), **options)

    return put


@pytest.mark.parametrize("iterations", ["2000000000", "10000000000", "99999"])
def test_iterations_out_of_bounds_are_refused(monkeypatch, iterations):
    check_parameters(monkeypatch, f"1\n{iterations}", iterations)


@pytest.mark.parametrize(
    "printed", ["-\n-", "", "1\n2\n3", "x\n350000", f"{1 << 64}\n350000"]
)
def test_invalid_key_parameters_are_refused(monkeypatch, printed):
    check_parameters(monkeypatch, printed, printed.partition("\n")[2] or "-")


def check_parameters(monkeypatch, printed, detail):
    async def run(*_):
        return 0, printed

    monkeypatch.setattr(commands, "run", run)
    # the parameters are checked before the prompt
    monkeypatch.setattr(keyholder.Asker, "ask", None)
    with pytest.raises(keyholder.Stopped) as caught:
        keyholder.ask_present_passphrase("tank/x", keyholder.Asker(False))
    assert caught.value.end is End.BAD_PARAMETERS
    assert str(caught.value.detail) == detail


def test_each_end_of_the_keyholder_has_a_message():
    assert set(End) == set(keys._ENDS)
    for word, exception in keys._ENDS.items():
        detail = Purpose.NEW_SHORT if word == End.WRONG else "5 new"
        why = messages.reason(exception("tank/x", detail))
        assert why and "{" not in why, word


TEXT = st.text(st.characters(codec="utf-8"))
REQUESTS = st.builds(
    Request,
    action=st.sampled_from(Action),
    root=TEXT,
    typed=st.booleans(),
    iterations=st.integers(),
    properties=st.dictionaries(TEXT, TEXT | st.integers() | st.none()),
)


@given(REQUESTS)
def test_a_request_survives_the_command_line(request):
    assert Request.parse([str(word) for word in request.arguments]) == request


def test_a_request_from_an_earlier_qubesd_is_parsed():
    """A qubesd that runs on after an upgrade starts the new keyholder."""
    load = Request.parse(["load", "tank", '{"typed": false}'])
    assert load == Request(Action.LOAD, "tank")
    change = '{"iterations": 350000, "typed": true}'
    assert Request.parse(["change", "tank", change]) == Request(
        Action.CHANGE, "tank", True, 350_000
    )
    create = '{"iterations": 350000, "properties": {"volmode": 2}}'
    assert Request.parse(["create", "tank", create]) == Request(
        Action.CREATE, "tank", False, 350_000, {"volmode": 2}
    )


def test_an_invalid_request_is_refused():
    for words in ["load", "tank"], ["unload", "tank", "{}"], ["load", "t", "x"]:
        with pytest.raises(ValueError):
            Request.parse(words)
    with pytest.raises(TypeError):
        Request.parse(["load", "tank", '{"key": 1}'])


def test_a_stuck_keyholder_is_killed_and_others_continue(stand_in, monkeypatch):
    monkeypatch.setattr(keys, "PATIENCE", 1.0)
    stand_in('[ "$2" = tank/good ] || exec sleep 60; sleep 0.5; echo done')

    async def both():
        start_time = time.monotonic()
        stuck = asyncio.create_task(keys.load("tank/stuck", prompt))
        await keys.load("tank/good", prompt)
        assert not stuck.done()
        with pytest.raises(Silent) as caught:
            await stuck
        return time.monotonic() - start_time, messages.reason(caught.value)

    took, why = asyncio.run(both())
    assert took < 10 and "did not respond for 1 s and" in why
    assert "zpool status" in why


def test_more_iterations_extend_the_time_limit(stand_in, monkeypatch):
    monkeypatch.setattr(keys, "PATIENCE", 0.5)
    monkeypatch.setattr(keys, "SLOWEST", 100)
    stand_in("echo deriving 1000; sleep 2; echo done")
    asyncio.run(keys.load("tank/x", prompt))


def test_an_unkillable_keyholder_is_not_waited_for(monkeypatch, caplog):
    """A process that waits in the kernel for a disk does not end."""
    monkeypatch.setattr(keys, "GRACE", 0.1)
    monkeypatch.setattr(keys, "END_LIMIT", 0.2)
    kill = asyncio.subprocess.Process.kill

    async def end():
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "trap : TERM; sleep 2; sleep 60"
        )
        await asyncio.sleep(0.3)
        for stop in "terminate", "kill":
            monkeypatch.setattr(
                asyncio.subprocess.Process, stop, lambda self: None
            )
        start_time = time.monotonic()
        await keys._end(process)
        took = time.monotonic() - start_time
        assert process.returncode is None and runtime.of(runtime.Tasks)
        kill(process)
        await asyncio.wait(set(runtime.of(runtime.Tasks)))
        return took

    assert asyncio.run(end()) < 2
    assert "waits for ZFS" in caplog.text


def test_the_keyholder_can_wipe_memory_before_it_is_killed(
    stand_in, monkeypatch, tmp_path
):
    wiped = tmp_path / "wiped"
    stand_in(
        f"trap 'echo > {wiped}; exit' TERM; echo new; while :; do sleep 0.1; done"
    )

    async def cancelled(purpose, answers):
        raise KeyError(purpose)

    with pytest.raises(KeyError):
        asyncio.run(keys.load("tank/x", cancelled))
    assert wiped.exists()


@pytest.mark.parametrize("error", [answers.CallerGone, answers.BadLine])
def test_the_first_answer_is_wiped_if_the_second_is_missing(monkeypatch, error):
    first = bytearray(b"long enough")
    replies = iter([first])

    def piped():
        for answer in replies:
            return answer
        raise error

    monkeypatch.setattr(answers, "read_piped", piped)
    with pytest.raises((answers.CallerGone, keyholder.Stopped)):
        keyholder.new_passphrase(keyholder.Asker(False))
    assert first == bytes(len(first))


def test_the_user_is_asked_three_times(monkeypatch):
    monkeypatch.setattr(answers, "read_piped", lambda: bytearray(b"short"))
    with pytest.raises(keyholder.Stopped) as caught:
        keyholder.new_passphrase(keyholder.Asker(False))
    assert caught.value.end is End.WRONG
    failure = keys._ENDS[End.WRONG]("tank/x", str(caught.value.detail))
    assert isinstance(failure, WrongPassphrase)
    assert messages.reason(failure) == messages.NO_NEW_PASSPHRASE


def test_read_typed_consumes_exactly_one_line():
    code = (
        "from qubes_storage_zfs.zfs import answers\n"
        "print(bytes(answers.read_typed()), bytes(answers.read_typed()))\n"
        "try: answers.read_typed()\n"
        "except answers.Ended: print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"one\n\nlast without end",
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"b'one' b''\nended\n"


def test_copies_of_a_key_are_overwritten():
    """Also a copy that the allocator overwrote in part when it was freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    key = hashlib.pbkdf2_hmac("sha1", b"words", b"salt", 1, 32)
    hidden = bytes(byte ^ 0xFF for byte in key)
    addresses = [libc.malloc(100) for _ in range(3)]
    for address in addresses:
        ctypes.memmove(address + 1, key, 32)
    ctypes.memmove(addresses[0] + 1, bytes(16), 16)
    arena = bytearray(b"more " + key)
    secrecy.wipe_copies(key)
    assert key == bytes(32) and arena == b"more " + bytes(32)
    for address in addresses:
        assert ctypes.string_at(address + 1, 32) == bytes(32)
        libc.free(ctypes.c_void_p(address))
    assert hidden != bytes(32)


def run_without_memory_locks(code):
    """Run *code* without the right to lock memory; return its output."""
    setting = (
        "import ctypes, resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "for right in (14, 24): ctypes.CDLL(None).prctl(24, right, 0, 0, 0)\n"
        "import os; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + setting, code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_memory_that_cannot_be_locked_is_an_error():
    if os.geteuid():
        pytest.skip("drops rights that only root has")
    output = run_without_memory_locks(
        "from qubes_storage_zfs.zfs import keyholder\n"
        "keyholder.main(['load', 'tank/x', '{}'])"
    )
    word, _, detail = output.strip().partition(" ")
    assert word == "unprotected" and detail.startswith("mlockall: ")
    why = messages.reason(keys._ENDS[word]("tank/x", detail))
    assert "could not protect its memory (mlockall: " in why


def test_a_keyholder_that_ends_without_a_report_is_an_error(stand_in):
    stand_in("exit 3")
    with pytest.raises(ZfsError, match="exited early; try again"):
        asyncio.run(keys.load("tank/x", prompt))
    with contextlib.suppress(ProcessLookupError):
        assert not runtime.of(runtime.Tasks)
