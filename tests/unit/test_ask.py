"""What answers a prompt, and what does not, with services of all kinds."""

import asyncio
import os
import pathlib
import signal
import sys
import types

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "host"))

import qubes.exc

from qubes_storage_zfs import ask


class Domain:
    """Its service is a line of shell."""

    name = "sys-gui"
    klass = "AppVM"

    def __init__(self, script):
        self.script = script
        self.services = []
        self.process = None

    async def run_service(self, service, user=None, **popen):
        assert user is None
        self.services.append(service)
        if isinstance(self.script, Exception):
            raise self.script
        self.process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", self.script, **popen
        )
        return self.process


def answer(domain, pool="work"):
    """What comes out of the pipe when *domain* asks."""
    asker = ask.Asker(pool, domain, ask.UNLOCK_BY_HAND)
    theirs, ours = os.pipe()
    try:
        asyncio.run(asker("unlock", ours))
    finally:
        os.close(ours)
        with open(theirs, "rb") as pipe:
            came = pipe.read()
    return came


def test_answer_goes_into_the_pipe():
    domain = Domain('read pool limit; echo "$pool $limit"')
    assert answer(domain) == f"work {ask.LIMIT}\n".encode()
    assert domain.services == ["qubes.AskPassword+unlock"]


@pytest.mark.parametrize(
    "script, kind, why",
    [
        ("exit 1", ask.NotAsked, "prompt was cancelled"),
        ("exit 4", ask.NotAsked, "nobody answered .* in sys-gui for 120"),
        ("exit 2", ask.NobodyToAsk, "nobody can be asked .* in sys-gui; run"),
        (
            "exit 127",
            ask.NobodyToAsk,
            "'sudo qvm-zfs unlock work' in a terminal",
        ),
        ("kill -9 $$", ask.NobodyToAsk, "nobody can be asked"),
        (
            qubes.exc.QubesVMNotRunningError(types.SimpleNamespace(name="x")),
            ask.NobodyToAsk,
            "sys-gui, which is not running; start it, or run",
        ),
        (OSError(2, "no qrexec"), ask.NobodyToAsk, "nobody can be asked"),
    ],
)
def test_no_answer_says_why(script, kind, why):
    with pytest.raises(kind, match=why):
        answer(Domain(script))


def test_silent_prompt_is_closed(monkeypatch):
    monkeypatch.setattr(ask, "LIMIT", 0.2)
    monkeypatch.setattr(ask, "GRACE", 0.2)
    domain = Domain("cat >/dev/null; exit 4")
    with pytest.raises(ask.NotAsked, match="nobody answered"):
        answer(domain)
    assert domain.process.returncode == 4


def test_deaf_prompt_is_killed(monkeypatch):
    monkeypatch.setattr(ask, "LIMIT", 0.2)
    monkeypatch.setattr(ask, "GRACE", 0.2)
    domain = Domain("exec sleep 60 </dev/null")
    with pytest.raises(ask.NotAsked, match="nobody answered"):
        answer(domain)
    assert domain.process.returncode == -signal.SIGKILL


def test_prompt_is_closed_when_its_verb_is_cancelled():
    domain = Domain("cat >/dev/null; exit 0")

    async def leave():
        theirs, ours = os.pipe()
        asker = ask.Asker("work", domain, "")
        task = asyncio.create_task(asker("unlock", ours))
        while domain.process is None:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        os.close(theirs)
        os.close(ours)
        return task.cancelled()

    assert asyncio.run(leave())
    assert domain.process.returncode == 0


def test_where_to_ask():
    dom0, gui, other = (types.SimpleNamespace(name=n) for n in "dgo")
    work = types.SimpleNamespace(name="work", guivm=gui)
    plain = types.SimpleNamespace(name="plain", guivm=None)
    app = types.SimpleNamespace(
        domains={"dom0": dom0, "o": other, "work": work, "plain": plain},
        default_guivm=gui,
    )
    find = ask.domain_for
    assert find(None, "work", app) is gui
    assert find(None, "plain", app) is dom0
    assert find("o", "work", app) is other
    assert find("gone", "work", app) is None
    # a pool is added: no qube yet
    assert find(None, None, app) is gui
    assert find(None, None, None) is None
    with pytest.raises(ask.NobodyToAsk, match="run 'sudo qvm-zfs unlock p'"):
        answer(None, "p")
