# SPDX-License-Identifier: BSD-2-Clause
"""The service qubes.AskPassword, with stand-ins for pinentry and others.

Each stand-in records its arguments, its environment and the commands it read.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from qubes_storage_zfs.store import messages
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import keywords

DOM0 = Path(__file__).resolve().parents[2] / "dom0"
SCRIPT = DOM0 / "qubes-rpc/qubes.AskPassword"
POLICY = DOM0 / "policy.d/30-qubes-storage-zfs.policy"

SECRET = "correct horse 7%"
SCREEN = {"DISPLAY": ":5"}
ANSWERED, CANCELLED, UNAVAILABLE, BAD, LATE = range(5)

PINENTRY = """
echo OK stand-in
while read -r line; do
    echo "$line" >> {commands}
    case "$line" in
    GETPIN) {getpin} ;;
    "OPTION lc-"*) echo 'ERR 83886254 Unknown option' ;;
    *) echo OK ;;
    esac
done
"""
PROGRAM = """#!/bin/sh
echo {name} >> {log}
/bin/cat /proc/$$/cmdline /proc/$$/environ >> {seen}
{body}
"""


def load() -> types.ModuleType:
    module = types.ModuleType("ask_password")
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        SourceFileLoader(module.__name__, str(SCRIPT)).exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


class Host:
    """A host with the programs that a test adds, which takes requests."""

    def __init__(self, folder: Path) -> None:
        self.ask = load()
        self.folder = folder
        self.log, self.seen = folder / "log", folder / "seen"
        self.commands, self.pids = folder / "commands", folder / "pids"
        for name in "bin", "proc", "run":
            (folder / name).mkdir()
        self.ask.PATH = str(folder / "bin")
        self.ask.PROC = str(folder / "proc")
        self.ask.RUN = str(folder / "run")

    def add(self, name: str, body: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(
            PROGRAM.format(name=name, log=self.log, seen=self.seen, body=body)
        )
        file.chmod(0o755)

    def pinentry(self, getpin: str, name: str = "pinentry") -> None:
        self.add(name, PINENTRY.format(commands=self.commands, getpin=getpin))

    def request(
        self,
        purpose: str = "unlock",
        line: bytes = b"work 30\n",
        environ: dict = SCREEN,
        until=None,
    ) -> tuple[int, bytes]:
        """Return (status, answer); the caller gives up once *until* is true."""
        stdin, caller = os.pipe()
        answer, stdout = os.pipe()
        os.write(caller, line)
        over = threading.Event()

        def give_up() -> None:
            while not over.is_set() and not until():
                time.sleep(0.01)
            os.close(caller)

        thread = threading.Thread(target=give_up) if until else None
        try:
            if thread:
                thread.start()
            status = self.ask.serve(purpose, environ, stdin, stdout)
        finally:
            over.set()
            thread.join() if thread else os.close(caller)
            os.close(stdout)
            os.close(stdin)
        with open(answer, "rb") as file:
            return status, file.read()

    def started(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def alive(self) -> list[str]:
        """Return the noted processes that still run; a zombie does not."""
        alive = []
        for pid in self.pids.read_text().split():
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{pid}/stat").read_text()
                if state.rpartition(")")[2].split()[0] not in "ZX":
                    alive.append(pid)
        return alive

    def process(self, pid: int, started: int, **environ: str) -> None:
        """Add a process of this user to the simulated /proc."""
        folder = self.folder / "proc" / str(pid)
        folder.mkdir()
        stat = [pid, "(a) b)", "S", *[0] * 18, started, 0]
        (folder / "stat").write_text(" ".join(map(str, stat)))
        lines = (f"{name}={value}" for name, value in environ.items())
        (folder / "environ").write_text("\0".join(lines) + "\0")


def _wait(condition) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


PURPOSES = ["new", "new-again", "new-differs", "new-short"]
PURPOSES += ["unlock", "unlock-again"]


def test_all_programs_have_the_same_purposes(host) -> None:
    assert sorted(host.ask.TEXTS) == PURPOSES
    assert len(set(host.ask.TEXTS.values())) == len(PURPOSES)
    # the service is a separate program, which imports nothing of ours
    assert sorted(keywords.Purpose) == sorted(common.TEXTS) == PURPOSES


def test_all_programs_state_the_same_length_bounds(host) -> None:
    bounds = f"{keywords.SHORTEST} to {keywords.LONGEST} bytes"
    texts = (
        messages.NO_NEW_PASSPHRASE,
        common.TEXTS[keywords.Purpose.NEW],
        common.TEXTS[keywords.Purpose.NEW_SHORT],
    )
    assert all(bounds in text for text in texts)
    assert f" {keywords.SHORTEST} characters" in host.ask.TEXTS["new"]
    short = host.ask.TEXTS["new-short"]
    assert f" {bounds} long" in short


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_prompt_names_the_pool(host, purpose) -> None:
    host.pinentry("echo 'D x'; echo OK")
    assert host.request(purpose, b"my_pool-1.a 30\n") == (ANSWERED, b"x\n")
    commands = host.commands.read_text().split("\n")
    (text,) = (line for line in commands if line.startswith("SETDESC "))
    assert '"my_pool-1.a"' in text
    assert "%" not in text
    assert "SETTIMEOUT 30" in commands and "OPTION grab" in commands


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_prompt_names_the_qube_that_needs_the_pool(host, purpose) -> None:
    host.pinentry("echo 'D x'; echo OK")
    line = b"my_pool-1.a 30 disp_7-x.y\n"
    assert host.request(purpose, line) == (ANSWERED, b"x\n")
    (text,) = (
        line
        for line in host.commands.read_text().split("\n")
        if line.startswith("SETDESC ")
    )
    assert '"my_pool-1.a"' in text
    assert text.endswith(' (needed by the qube "disp_7-x.y")')


def test_zenity_shows_a_single_underscore(host) -> None:
    """A label of GTK reads a single underscore as a keyboard mnemonic."""
    host.add("zenity", "echo x")
    assert host.request(line=b"my_pool 30\n") == (ANSWERED, b"x\n")
    seen = host.seen.read_text().split("\0")
    assert "--hide-text" in seen
    assert any(arg.endswith('pool "my__pool"') for arg in seen)


@pytest.mark.parametrize("name", ["kdialog", "systemd-ask-password"])
def test_other_programs_show_the_text(host, name) -> None:
    host.add(name, "echo x")
    assert host.request() == (ANSWERED, b"x\n")
    seen = host.seen.read_text().split("\0")
    assert 'Passphrase of the encrypted pool "work"' in seen


ORDER = ["pinentry-gnome3", "pinentry-gtk-2", "pinentry-gtk", "pinentry-qt"]
ORDER += ["pinentry-qt6", "pinentry-qt5", "pinentry-fltk", "pinentry"]
ORDER += ["zenity", "kdialog", "systemd-ask-password"]


def test_a_program_that_cannot_prompt_is_followed_by_the_next(
    host, capfd
) -> None:
    for name in ORDER:
        if name == "pinentry-qt":
            host.add(name, "kill -ABRT $$")
        elif name.startswith("pinentry"):
            host.pinentry("echo 'ERR 83918950 Inappropriate ioctl'", name)
        elif name == "zenity":
            host.add(name, "echo 'cannot open display: :5' >&2; exit 1")
        elif name == "kdialog":
            host.add(name, "kill -HUP $$")
        else:
            host.add(name, "exit 1")
    assert host.request() == (UNAVAILABLE, b"")
    assert host.started() == ORDER
    assert (
        "kdialog and systemd-ask-password could not" in capfd.readouterr().err
    )


def test_no_program_runs_after_one_that_answered(host) -> None:
    host.pinentry("echo 'D x'; echo OK", "pinentry-qt")
    host.pinentry("echo 'D y'; echo OK")
    host.add("zenity", "echo z")
    assert host.request() == (ANSWERED, b"x\n")
    assert host.started() == ["pinentry-qt"]


def test_without_a_screen_only_the_console_prompts(host) -> None:
    for name in ORDER:
        host.add(name, "echo x")
    assert host.request(environ={}) == (ANSWERED, b"x\n")
    assert host.started() == ["systemd-ask-password"]
    assert "--no-tty" in host.seen.read_text().split("\0")


def test_missing_programs_are_reported(host, capfd) -> None:
    assert host.request() == (UNAVAILABLE, b"")
    assert "no program could not" not in (output := capfd.readouterr().err)
    assert "no program for a prompt is installed" in output
    assert host.request(environ={}) == (UNAVAILABLE, b"")
    assert "no graphical session" in capfd.readouterr().err


def test_a_program_that_cannot_run_is_reported(host, capfd) -> None:
    (host.folder / "bin/zenity").write_text("#!/nowhere\n")
    (host.folder / "bin/zenity").chmod(0o755)
    assert host.request() == (UNAVAILABLE, b"")
    assert "zenity could not show a prompt" in capfd.readouterr().err


@pytest.mark.parametrize(
    "data, answer",
    [
        ("D correct horse 7%25", SECRET),
        ("D 100%25%2525%0D+ ", "100%%25\r+ "),
        ("D schön %C3%A4 日本", "schön ä 日本"),
        ("D one\nS PIN_REPEATED\nD  two%25\n# three", "one two%"),
        ("D OK\nD ERR 1", "OKERR 1"),
        ("S PASSWORD", ""),
        ("D " + "%41" * 300 + "\nD " + "%42" * 724, "A" * 300 + "B" * 724),
    ],
)
def test_escapes_of_pinentry_are_decoded(host, data, answer) -> None:
    host.pinentry(
        "".join(f"echo '{line}';" for line in data.split("\n")) + "echo OK"
    )
    assert host.request() == (ANSWERED, answer.encode() + b"\n")


@pytest.mark.parametrize("data", ["D a%4", "D a%zz", "D a%"])
def test_an_invalid_escape_of_pinentry_is_refused(host, data) -> None:
    host.pinentry(f"echo '{data}'; echo OK")
    assert host.request() == (UNAVAILABLE, b"")


@pytest.mark.parametrize(
    "name, printed, answer",
    [
        ("zenity", r"%s\n", SECRET),
        ("zenity", r" %s  \n", f" {SECRET}  "),
        ("kdialog", r"%s\n", "schön"),
        ("kdialog", r"%s", SECRET),
        ("zenity", r"%s\n", ""),
        ("systemd-ask-password", r"%s\n", "x" * 1024),
    ],
)
def test_one_line_is_the_answer(host, name, printed, answer) -> None:
    host.add(name, f"printf '{printed}' '{answer}'")
    status, output = host.request()
    assert status == ANSWERED
    assert (
        output.decode()
        == printed.replace("%s", answer).replace("\\n", "") + "\n"
    )


@pytest.mark.parametrize(
    "printed", [r"a\nb\n", r"a\n\n", r"a\0b\n", "x" * 1025, "x" * 20000]
)
def test_an_invalid_answer_is_refused(host, printed, capfd) -> None:
    """The answer is not truncated, because that is another passphrase."""
    host.add("zenity", f"printf '{printed}'")
    assert host.request() == (CANCELLED, b"")
    assert "the answer is " in capfd.readouterr().err


@pytest.mark.parametrize("data", ["a%0Ab", "a%00b", "x" * 1025, "%41" * 9000])
def test_an_invalid_answer_of_pinentry_is_refused(host, data) -> None:
    host.pinentry(f"echo 'D {data}'; echo OK")
    assert host.request() == (CANCELLED, b"")


def test_a_pinentry_that_cannot_show_the_pool_is_not_used(host) -> None:
    host.add(
        "pinentry",
        "echo OK; while read -r line; do case $line in "
        "SETDESC*) echo 'ERR 1 no' ;; GETPIN) echo 'D x'; echo OK ;; "
        "*) echo OK ;; esac; done",
    )
    host.add("zenity", "echo y")
    assert host.request() == (ANSWERED, b"y\n")


@pytest.mark.parametrize("code", [83886179, 83886194, 83886278, 99])
def test_cancelling_pinentry_ends_the_prompt(host, code) -> None:
    host.pinentry(f"echo 'ERR {code} Operation cancelled'")
    host.add("zenity", "echo x")
    assert host.request() == (CANCELLED, b"")
    assert host.started() == ["pinentry"]


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_cancelling_a_dialog_ends_the_prompt(host, name) -> None:
    host.add(name, "echo 'Gtk-WARNING: some display' >&2; exit 1")
    host.add("systemd-ask-password", "echo x")
    assert host.request() == (CANCELLED, b"")
    assert host.started() == [name]


def test_a_refused_keyboard_grab_is_no_cancellation(host) -> None:
    """pinentry-gtk-2 reports it if another window has grabbed the keyboard."""
    host.pinentry(
        "echo 'could not grab keyboard: already grabbed (1)' >&2;"
        "echo 'ERR 83886179 Operation cancelled'"
    )
    host.add("zenity", "echo x")
    assert host.request() == (ANSWERED, b"x\n")


@pytest.mark.parametrize("name", ["pinentry", "zenity"])
def test_a_program_may_report_a_timeout(host, name) -> None:
    host.pinentry("echo 'ERR 83886142 Timeout'")
    if name == "zenity":
        (host.folder / "bin/pinentry").unlink()
        host.add("zenity", "exit 5")
    assert host.request() == (LATE, b"")


def _stubborn_script(host: Host) -> str:
    """Return a script of two noted processes that ignore SIGTERM."""
    return (
        "trap '' TERM; /bin/sleep 60 & "
        f"echo $$ $! > {host.pids}.new; /bin/mv {host.pids}.new {host.pids};"
        "wait"
    )


@pytest.mark.parametrize("name", ["pinentry", "zenity", "systemd-ask-password"])
def test_a_caller_that_gives_up_closes_the_prompt(host, name, capfd) -> None:
    if name == "pinentry":
        host.pinentry(_stubborn_script(host))
    else:
        host.add(name, _stubborn_script(host))
    before = time.monotonic()
    assert host.request(until=host.pids.exists) == (LATE, b"")
    assert time.monotonic() - before < 20
    _wait(lambda: not host.alive())
    assert "the caller ended the request" in capfd.readouterr().err


def test_further_input_does_not_close_the_prompt(host) -> None:
    host.add("zenity", "/bin/sleep 0.05; echo x")
    line = b"work 30\n" + b"more\n" * 2000
    assert host.request(line=line) == (ANSWERED, b"x\n")


def test_the_time_limit_closes_the_prompt(host, capfd) -> None:
    host.add("zenity", _stubborn_script(host))
    host.add("kdialog", "echo x")
    before = time.monotonic()
    assert host.request(line=b"work 1\n") == (LATE, b"")
    assert 1 <= time.monotonic() - before < 20
    _wait(lambda: not host.alive())
    assert host.started() == ["zenity"]
    assert "the prompt was not answered in time" in capfd.readouterr().err


def test_an_answer_that_the_caller_does_not_read_is_late(host) -> None:
    host.add("zenity", "echo x")
    stdin, caller = os.pipe()
    answer, stdout = os.pipe()
    os.close(answer)
    os.write(caller, b"work 30\n")
    try:
        assert host.ask.serve("unlock", SCREEN, stdin, stdout) == LATE
    finally:
        for fd in stdin, caller, stdout:
            os.close(fd)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"work\n",
        b"work 30",
        b"work 0\n",
        b"work 3601\n",
        b"work -1\n",
        b"work 30 \n",
        b"work  30\n",
        b"work 30\r\n",
        b".work 30\n",
        b"-work 30\n",
        b"wo%rk 30\n",
        b"wo\0rk 30\n",
        b"wo<b>rk 30\n",
        b'wo"rk 30\n',
        "wörk 30\n".encode(),
        b"a" * 65 + b" 30\n",
        b"work 30 \n",
        b"work 30 a b\n",
        b"work 30 7a\n",
        b"work 30 <b>a\n",
        b"work 30 a&b\n",
        b"work 30 a%0Ab\n",
        b"work 30 " + b"a" * 32 + b"\n",
        b"a" * 5000,
    ],
)
def test_an_invalid_request_shows_no_prompt(host, line, capfd) -> None:
    host.add("zenity", "echo x")
    assert host.request(line=line, until=lambda: True) == (BAD, b"")
    assert host.started() == []
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"a 1\n",
        b"a" * 64 + b" 3600\n",
        b"7_.- 9\n",
        b"a" * 64 + b" 3600 " + b"b" * 31 + b"\n",
    ],
)
def test_a_valid_request_shows_a_prompt(host, line) -> None:
    host.add("zenity", "echo x")
    assert host.request(line=line) == (ANSWERED, b"x\n")


@pytest.mark.parametrize(
    "purpose", ["", "new ", "New", "unlock+a", "../unlock"]
)
def test_an_invalid_purpose_shows_no_prompt(host, purpose) -> None:
    host.add("zenity", "echo x")
    assert host.request(purpose) == (BAD, b"")
    assert host.started() == []


def test_a_request_from_a_qube_shows_no_prompt(host) -> None:
    """The service refuses even if the policy allows the call."""
    host.add("zenity", "echo x")
    environ = {**SCREEN, "QREXEC_REMOTE_DOMAIN": "sys-net"}
    assert host.request(environ=environ) == (BAD, b"")
    environ["QREXEC_REMOTE_DOMAIN"] = "dom0"
    assert host.request(environ=environ) == (ANSWERED, b"x\n")


def test_the_passphrase_is_in_no_argument_and_no_environment(
    host, capfd
) -> None:
    """Nor of a program that runs after the passphrase was typed."""
    host.pinentry("echo 'D correct horse 7%25'; exit", "pinentry-qt")
    host.pinentry("echo 'D correct horse 7%25 %'; echo OK")
    host.add("zenity", f"echo '{SECRET}'; exit 3")
    host.add("systemd-ask-password", f"echo '{SECRET}'")
    environ = {**SCREEN, "LD_PRELOAD": "x", "WORD": SECRET}
    assert host.request(environ=environ) == (ANSWERED, f"{SECRET}\n".encode())
    assert len(host.started()) == 4
    seen = host.seen.read_text()
    assert "DISPLAY=:5" in seen and "LC_ALL=C.UTF-8" in seen
    assert "correct" not in seen and "LD_PRELOAD" not in seen
    assert "correct" not in host.commands.read_text()
    assert "correct" not in "".join(capfd.readouterr())


def test_the_buffer_is_overwritten(host, monkeypatch) -> None:
    buffers = []

    class RecordingPrompt(host.ask.Prompt):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            buffers.append(self.said)

    monkeypatch.setattr(host.ask, "Prompt", RecordingPrompt)
    host.pinentry("echo 'D correct horse 7%25'; echo OK")
    assert host.request()[0] == ANSWERED
    host.add("pinentry", "exit 1")
    host.add("zenity", f"echo '{SECRET}'")
    assert host.request()[0] == ANSWERED
    assert len(buffers) == 3 and not any(map(any, buffers))


def test_no_file_descriptor_stays_open(host) -> None:
    host.pinentry("echo 'ERR 1 no'")
    host.add("zenity", "echo x")
    before = os.listdir("/proc/self/fd")
    assert host.request()[0] == ANSWERED
    assert os.listdir("/proc/self/fd") == before


# --- the session


def test_the_session_in_the_environment_is_used(host) -> None:
    host.add("systemctl", "echo DISPLAY=:9")
    environ = {"WAYLAND_DISPLAY": "wayland-0", "HOME": "/x", "PATH": "/y"}
    _, session = host.ask.find_session(environ)
    assert session == {"WAYLAND_DISPLAY": "wayland-0"}
    assert host.started() == []


def test_the_session_that_systemd_reports_is_used(host) -> None:
    lines = ["LANG=x", "DISPLAY=:9", "XAUTHORITY=$'/a b'", "=", "A"]
    host.add("systemctl", f'printf "%s\\n" "{chr(10).join(lines)}"')
    run = host.folder / "run" / str(os.getuid())
    run.mkdir()
    (run / "bus").touch()
    host.process(7, 1, DISPLAY=":7")
    uid, session = host.ask.find_session({"DISPLAY": ""})
    assert uid == os.getuid()
    assert session == {
        "DISPLAY": ":9",
        "XDG_RUNTIME_DIR": str(run),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={run}/bus",
    }
    seen = host.seen.read_text().split("\0")
    assert "--user" in seen and f"XDG_RUNTIME_DIR={run}" in seen


@pytest.mark.parametrize(
    "systemctl", ["exit 1", "echo XDG_RUNTIME_DIR=/x", None]
)
def test_the_session_of_the_oldest_process_is_used(
    host, monkeypatch, systemctl
) -> None:
    if systemctl:
        host.add("systemctl", systemctl)
    uid = os.getuid()
    monkeypatch.setattr(host.ask, "PEOPLE", range(uid, uid + 1))
    host.process(3, 10, HOME="/x")
    host.process(5, 400, DISPLAY=":5")
    host.process(7, 99, DISPLAY=":7", XAUTHORITY="/a", HOME="/x")
    host.process(8, 100, WAYLAND_DISPLAY="w")
    (host.folder / "proc/9").mkdir()
    (host.folder / "proc/self").mkdir()
    expected = uid, {"DISPLAY": ":7", "XAUTHORITY": "/a"}
    assert host.ask.find_session({}) == expected


LOGINCTL = """
case "$*" in
*show-seat*) echo Id=seat0; echo ActiveSession={seat} ;;
*show-session*{seat}*) printf 'User={user}\\nClass={kind}\\n'
    printf 'Type={type}\\nDisplay={display}\\n' ;;
esac
"""


def _logind(host, user, seat="c2", kind="user", type="x11", display=":1"):
    """Add a stand-in for loginctl, which reports one active session."""
    values = {"user": user, "seat": seat, "kind": kind, "type": type}
    host.add("loginctl", LOGINCTL.format(**values, display=display))


@pytest.fixture
def root(host, monkeypatch):
    """Run as root; return a function that adds a process of a user."""
    entries = []
    monkeypatch.setattr(host.ask.os, "getuid", lambda: 0)
    monkeypatch.setattr(host.ask, "PEOPLE", range(4000, 5000))
    monkeypatch.setattr(
        host.ask,
        "processes",
        lambda uids: [entry for entry in entries if entry[1] in uids],
    )

    def process(started, uid, **environ):
        entries.append((started, uid, host.ask.of_session(pairs(environ))))

    def pairs(environ):
        return [f"{name}={value}" for name, value in environ.items()]

    return process


def test_root_prompts_in_the_active_session_of_seat0(host, root) -> None:
    """Another user may have been logged in for longer."""
    root(10, 4001, DISPLAY=":0", XAUTHORITY="/old")
    root(80, 4002, DISPLAY=":1.0", XAUTHORITY="/mine")
    root(90, 4002, DISPLAY=":1", XAUTHORITY="/later")
    root(20, 4002, DISPLAY=":7", XAUTHORITY="/another")
    _logind(host, 4002)
    assert host.ask.find_session({}) == (
        4002,
        {"DISPLAY": ":1.0", "XAUTHORITY": "/mine"},
    )
    _logind(host, 4001, seat="3", display=":0", kind="user-light")
    assert host.ask.find_session({})[0] == 4001
    # no process names the file with the X11 cookie
    _logind(host, 4002, display=":3")
    assert host.ask.find_session({}) == (4002, {"DISPLAY": ":3"})
    # Wayland
    root(95, 4003, WAYLAND_DISPLAY="wayland-0")
    _logind(host, 4003, type="wayland", display="")
    assert host.ask.find_session({}) == (
        4003,
        {"WAYLAND_DISPLAY": "wayland-0"},
    )


@pytest.mark.parametrize(
    "active",
    [
        {"user": 4001, "kind": "greeter"},
        {"user": 4001, "kind": "lock-screen"},
        {"user": 4001, "type": "tty", "display": ""},
        {"user": 0},
        {"user": 999},
    ],
)
def test_a_session_that_is_not_on_the_screen_shows_no_prompt(
    host, root, active
) -> None:
    root(10, 4001, DISPLAY=":1")
    _logind(host, **active)
    assert host.ask.find_session({}) == (0, {})
    for report in "Id=seat0", r"Id=seat0\nActiveSession=\n":
        host.add("loginctl", f"printf '{report}\\n'")
        assert host.ask.find_session({}) == (0, {})


@pytest.mark.parametrize(
    "loginctl", [None, "echo Failed to connect to bus >&2; exit 1", "exit 0"]
)
def test_without_logind_the_oldest_process_is_used(
    host, root, loginctl
) -> None:
    if loginctl:
        host.add("loginctl", loginctl)
    root(10, 3999, DISPLAY=":5")
    root(30, 4001, DISPLAY=":6")
    root(20, 4002, DISPLAY=":7")
    assert host.ask.find_session({}) == (4002, {"DISPLAY": ":7"})


def test_root_prompts_as_the_user_of_the_session(host, monkeypatch) -> None:
    """It is not the login screen; the program runs with the user's identity."""
    uid = os.getuid() or 4321
    host.process(7, 99, DISPLAY=":7")
    os.chown(host.folder / "proc/7", uid, -1)
    host.add("zenity", "echo x")
    monkeypatch.setattr(host.ask.os, "getuid", lambda: 0)
    monkeypatch.setattr(host.ask, "PEOPLE", range(uid + 1, uid + 2))
    assert host.ask.find_session({}) == (0, {})
    monkeypatch.setattr(host.ask, "PEOPLE", range(uid, uid + 1))
    person = types.SimpleNamespace(pw_dir="/home/person")
    monkeypatch.setattr(host.ask.pwd, "getpwuid", {uid: person}.get)
    identities = []
    monkeypatch.setattr(host.ask, "become", identities.append)
    assert host.request(environ={}) == (ANSWERED, b"x\n")
    assert identities == [uid]
    assert "HOME=/home/person" in host.seen.read_text().split("\0")


# --- the installed script


def _run(*argv: str, line: bytes = b"work 30\n", **environ: str):
    environ = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(
        [SCRIPT, *argv], input=line, env=environ, capture_output=True
    )


def test_the_script_refuses_invalid_requests() -> None:
    for result in (
        _run(),
        _run("nonsense"),
        _run("unlock", line=b"a b\n"),
        _run("unlock", QREXEC_SERVICE_ARGUMENT="nonsense"),
        _run(line=b"a b\n", QREXEC_SERVICE_ARGUMENT="unlock"),
    ):
        assert result.returncode == BAD, result
        assert result.stdout == b""
        assert result.stderr.count(b"\n") == 1
    assert SCRIPT.read_text().startswith("#!/usr/bin/python3 -I\n")


def test_the_environment_cannot_choose_a_program(host, monkeypatch) -> None:
    host.add("zenity", "echo x")
    host.add("systemctl", "echo DISPLAY=:9")
    monkeypatch.setenv("PATH", host.ask.PATH)
    host.ask.PATH = str(host.folder / "run")
    for environ in {**SCREEN, "PATH": os.environ["PATH"]}, {}:
        assert host.request(environ=environ) == (UNAVAILABLE, b"")
    assert host.started() == []
    folders = load().PATH.split(":")
    assert all(
        folder.startswith(("/usr/", "/bin", "/sbin")) for folder in folders
    )


def test_a_signal_closes_the_prompt(host) -> None:
    """SIGKILL does so, too, although the service cannot clean up."""
    host.add("zenity", f"echo $$ > {host.pids}; exec /bin/sleep 60")
    text = SCRIPT.read_text()
    copy = host.folder / "copy"
    assert text.count('\nPATH = "') == 1
    copy.write_text(text.replace('\nPATH = "', f'\nPATH = "{host.ask.PATH}:'))
    for number, status in (signal.SIGTERM, LATE), (signal.SIGKILL, -9):
        host.pids.write_text("")
        with subprocess.Popen(
            [sys.executable, "-I", copy, "unlock"],
            env=SCREEN,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdin.write(b"work 30\n")
            process.stdin.flush()
            _wait(lambda: host.pids.read_text().endswith("\n"))
            core = Path(f"/proc/{process.pid}/limits").read_text()
            process.send_signal(number)
            assert process.wait() == status
        _wait(lambda: not host.alive())
        (line,) = (x for x in core.split("\n") if "core file" in x)
        assert line.split()[4:6] == ["0", "0"]


def test_the_service_writes_no_core_dump() -> None:
    script = (
        "import importlib.machinery as m, sys, types\n"
        "sys.dont_write_bytecode = True\n"
        "ask = types.ModuleType('ask')\n"
        f"m.SourceFileLoader('ask', {str(SCRIPT)!r}).exec_module(ask)\n"
        "ask.no_core_dump()\n"
        "PR_GET_DUMPABLE = 3\n"
        "assert ask.LIBC.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0\n"
        "assert ask.resource.getrlimit(ask.resource.RLIMIT_CORE) == (0, 0)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


@pytest.mark.parametrize("call", ["prctl", "mlock"])
def test_no_prompt_is_shown_if_memory_cannot_be_protected(
    host, monkeypatch, capfd, call
) -> None:
    host.add("zenity", "echo never shown")
    refusing = types.SimpleNamespace(prctl=lambda *_: 0, mlock=lambda *_: 0)
    setattr(refusing, call, lambda *_: -1)
    monkeypatch.setattr(host.ask, "LIBC", refusing)
    if call == "prctl":
        with pytest.raises(host.ask.End, match="DUMPABLE") as caught:
            host.ask.no_core_dump()
        assert caught.value.status == UNAVAILABLE
    else:
        assert host.request() == (UNAVAILABLE, b"")
        assert "refused to lock" in capfd.readouterr().err
    assert not host.log.exists()


def test_any_user_can_lock_the_buffer() -> None:
    """It needs no CAP_IPC_LOCK, and the smallest common limit suffices."""
    script = (
        "import importlib.machinery as m, os, resource, sys, types\n"
        "sys.dont_write_bytecode = True\n"
        "ask = types.ModuleType('ask')\n"
        f"m.SourceFileLoader('ask', {str(SCRIPT)!r}).exec_module(ask)\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "buffer = bytearray(ask.SAID_SIZE)\n"
        "ask.lock(buffer)\n"
        "text = open('/proc/self/status').read()\n"
        "assert int(text.partition('VmLck:')[2].split()[0]) >= 8, text\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


# --- the policy


def test_the_policy_denies_every_qube_without_notification() -> None:
    lines = (line.split("#")[0].split() for line in open(POLICY))
    rules = [line for line in lines if line]
    assert all(rule[:2] == ["qubes.AskPassword", "*"] for rule in rules)
    assert [rule[2:] for rule in rules] == [
        ["@adminvm", "@anyvm", "allow"],
        ["@anyvm", "@adminvm", "deny", "notify=no"],
        ["@anyvm", "@anyvm", "deny", "notify=no"],
    ]


def _qubes() -> dict:
    common = {"tags": [], "power_state": "Running", "default_dispvm": "dvm"}
    kinds = {"dom0": "AdminVM", "sys-gui": "AppVM", "work": "AppVM"}
    kinds |= {"dvm": "AppVM", "disp1": "DispVM"}
    return {
        "domains": {
            name: {
                **common,
                "name": name,
                "type": kind,
                "template_for_dispvms": name == "dvm",
                "uuid": f"00000000-0000-0000-0000-{number:012}",
            }
            for number, (name, kind) in enumerate(kinds.items())
        }
    }


@pytest.mark.parametrize("purpose", ["+", "+unlock", "+new"])
def test_qrexec_evaluates_the_policy_as_intended(tmp_path, purpose) -> None:
    parser = pytest.importorskip("qrexec.policy.parser")
    exc = pytest.importorskip("qrexec.exc")
    (tmp_path / POLICY.name).write_bytes(POLICY.read_bytes())
    # a permissive policy that a user may have added in a later file
    (tmp_path / "30-user.policy").write_text("* * @anyvm @anyvm allow\n")
    policy = parser.FilePolicy(policy_path=[tmp_path])

    def evaluate(service: str, source: str, target: str):
        return policy.evaluate(
            parser.Request(
                service, purpose, source, target, system_info=_qubes()
            )
        )

    targets = ["dom0", "@adminvm", "sys-gui", "work", "dvm", "disp1"]
    targets += ["@default", "@dispvm", "@dispvm:dvm", "nonexistent"]
    for source in "work", "sys-gui", "dvm", "disp1":
        for target in targets:
            with pytest.raises(exc.AccessDenied) as caught:
                evaluate("qubes.AskPassword", source, target)
            assert caught.value.notify is False, (source, target)
            assert POLICY.name in str(caught.value)
    assert evaluate("qubes.AskPassword", "dom0", "sys-gui").target == "sys-gui"
    assert evaluate("qubes.Other", "work", "sys-gui").target == "sys-gui"
