# SPDX-License-Identifier: BSD-2-Clause
"""The prompt for a passphrase, with services that answer and that fail."""

import asyncio
import os
import pathlib
import signal
import sys
import types
import uuid

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "host"))

import qubes.exc

from qubes_storage_zfs.driver import prompts


class Domain:
    """A qube whose service is a line of shell."""

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


def answer(domain, pool="work", qube=None):
    """Return the text that the service of *domain* writes into the pipe."""
    asker = prompts.Asker(pool, lambda: domain, prompts.UNLOCK_BY_HAND, qube)
    theirs, ours = os.pipe()
    try:
        asyncio.run(asker("unlock", ours))
    finally:
        os.close(ours)
        with open(theirs, "rb") as pipe:
            received = pipe.read()
    return received


def test_the_answer_is_written_into_the_pipe():
    domain = Domain('read pool limit; echo "$pool $limit"')
    assert answer(domain) == f"work {prompts.LIMIT}\n".encode()
    assert domain.services == ["qubes.AskPassword+unlock"]


def test_the_request_names_the_qube_that_needs_the_pool():
    domain = Domain("head -n 1")
    assert (
        answer(domain, qube="disp7") == f"work {prompts.LIMIT} disp7\n".encode()
    )
    # no qube can have such a name; the service would refuse the request
    for name in "a b", "a\n", "<b>a</b>", "7", "a" * 32, "":
        assert answer(domain, qube=name) == f"work {prompts.LIMIT}\n".encode()


@pytest.mark.parametrize(
    "script, kind, reason",
    [
        ("exit 1", prompts.PromptFailed, "prompt was cancelled"),
        (
            "exit 4",
            prompts.PromptFailed,
            "prompt in sys-gui was not answered within 120",
        ),
        (
            "exit 2",
            prompts.NoPrompt,
            "prompt cannot be shown in sys-gui; run",
        ),
        (
            "exit 127",
            prompts.NoPrompt,
            "'sudo qvm-zfs unlock work' in a dom0 terminal",
        ),
        ("kill -9 $$", prompts.NoPrompt, "prompt cannot be shown"),
        (
            qubes.exc.QubesVMNotRunningError(types.SimpleNamespace(name="x")),
            prompts.NoPrompt,
            "sys-gui, which is not running; start it, or run",
        ),
        (
            OSError(2, "no qrexec"),
            prompts.NoPrompt,
            "prompt cannot be shown",
        ),
    ],
)
def test_a_failed_prompt_reports_its_cause(script, kind, reason):
    with pytest.raises(kind, match=reason):
        answer(Domain(script))


def test_an_unanswered_prompt_is_closed(monkeypatch):
    monkeypatch.setattr(prompts, "LIMIT", 0.2)
    monkeypatch.setattr(prompts, "GRACE", 0.2)
    domain = Domain("cat >/dev/null; exit 4")
    with pytest.raises(prompts.PromptFailed, match="was not answered within"):
        answer(domain)
    assert domain.process.returncode == 4


def test_an_unresponsive_prompt_is_killed(monkeypatch):
    monkeypatch.setattr(prompts, "LIMIT", 0.2)
    monkeypatch.setattr(prompts, "GRACE", 0.2)
    domain = Domain("exec sleep 60 </dev/null")
    with pytest.raises(prompts.PromptFailed, match="was not answered within"):
        answer(domain)
    assert domain.process.returncode == -signal.SIGKILL


def test_the_prompt_is_closed_when_its_operation_is_cancelled():
    domain = Domain("cat >/dev/null; exit 0")

    async def cancel():
        theirs, ours = os.pipe()
        asker = prompts.Asker("work", lambda: domain, "")
        task = asyncio.create_task(asker("unlock", ours))
        while domain.process is None:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        os.close(theirs)
        os.close(ours)
        return task.cancelled()

    assert asyncio.run(cancel())
    assert domain.process.returncode == 0


def system():
    names = ("dom0", "gui", "other", "evil")
    domains = {
        name: types.SimpleNamespace(name=name, uuid=uuid.uuid4())
        for name in names
    }
    for name, gui in {"a": "gui", "b": "dom0", "c": "evil", "d": None}.items():
        guivm = domains.get(gui)
        domains[name] = types.SimpleNamespace(name=name, guivm=guivm)
    return types.SimpleNamespace(domains=domains, default_guivm=domains["gui"])


def test_the_prompt_is_shown_in_the_gui_domain_or_dom0():
    app = system()
    dom0, gui = app.domains["dom0"], app.domains["gui"]
    assert prompts.domain_for(None, "a", app) is gui
    assert prompts.domain_for(None, "b", app) is dom0
    assert prompts.domain_for(None, "d", app) is gui
    # when a pool is added, no qube needs it yet
    assert prompts.domain_for(None, None, app) is gui
    app.default_guivm = None
    for qube in "a", "b", "d", None:
        assert prompts.domain_for(None, qube, app) is dom0
    assert prompts.domain_for(None, None, None) is None
    with pytest.raises(prompts.NoPrompt, match="run 'sudo qvm-zfs unlock p'"):
        answer(None, "p")


def test_a_remote_qube_shows_no_prompt():
    """A RemoteVM has no run_service()."""
    app = system()
    app.domains["far"] = far = types.SimpleNamespace(
        name="far", klass="RemoteVM", uuid=uuid.uuid4()
    )
    app.default_guivm = far
    for qube in "a", "b", None:
        assert prompts.domain_for(None, qube, app) is app.domains["dom0"]
    chosen = prompts.AskDomain("far", str(far.uuid))
    asker = prompts.prompt("p", chosen, "a", app)
    with pytest.raises(prompts.NoPrompt, match="prompt cannot be shown in far"):
        asyncio.run(asker("unlock", 1))


def test_guivm_of_a_qube_cannot_redirect_the_prompt():
    """An untrusted client may set ``guivm``, as when it restores a backup."""
    app = system()
    assert prompts.domain_for(None, "c", app) is app.domains["gui"]
    app.default_guivm = None
    assert prompts.domain_for(None, "c", app) is app.domains["dom0"]
    other = app.domains["other"]
    chosen = prompts.AskDomain("other", str(other.uuid))
    for qube in "a", "b", "c", "d", None:
        assert prompts.domain_for(chosen, qube, app) is other


def test_a_new_qube_of_the_same_name_shows_no_prompt():
    app = system()
    chosen = prompts.AskDomain("other", str(app.domains["other"].uuid))
    app.domains["other"] = types.SimpleNamespace(
        name="other", uuid=uuid.uuid4()
    )
    with pytest.raises(prompts.NoPrompt, match="other is not the one that ask"):
        prompts.domain_for(chosen, "a", app)
    unrecorded = prompts.AskDomain("other", None)
    with pytest.raises(prompts.NoPrompt, match="is not the one"):
        prompts.domain_for(unrecorded, "a", app)
    del app.domains["other"]
    asker = prompts.prompt("p", chosen, "a", app)
    with pytest.raises(prompts.NoPrompt) as caught:
        asyncio.run(asker("unlock", 1))
    assert str(caught.value) == (
        "the qube other, which ask_password_domain names, does not exist; run"
        " 'sudo qvm-zfs unlock p' in a dom0 terminal"
    )
