# SPDX-License-Identifier: BSD-2-Clause
"""The command qvm-zfs, without ZFS."""

import argparse
import ast
import asyncio
import dataclasses
import io
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_storage_zfs.tools import (
    attach,
    common,
    lock,
    main,
    output,
    passwd,
    status,
)
from qubes_storage_zfs.tools import pools as pools_of
from qubes_storage_zfs.tools.common import Failed, Pool
from qubes_storage_zfs.zfs import errors, keys, text
from qubes_storage_zfs.zfs.importexport import ImportableZpool

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_manual_has_every_command_and_option():
    manual = (ROOT / "doc/manpages/qvm-zfs.rst").read_text()
    (subcommands,) = (
        action
        for action in main.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for command, parser in subcommands.choices.items():
        assert f"\n{command}\n   " in manual
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"``{option}``" in manual, option
    named = re.findall(r"^(\w+)\n   ", manual, re.M)
    assert sorted(named) == sorted(subcommands.choices)


def test_tools_do_not_import_qubesd_modules():
    code = (
        "import sys; sys.modules['qubes'] = None\n"
        "import qubes_storage_zfs.tools.main, qubes_storage_zfs.zfs.keyholder"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_volumes_outside_an_encrypted_pool_are_found():
    def volume(name, pool, **more):
        kind = {"rw": True, "ephemeral": False, **more}
        return types.SimpleNamespace(name=name, pool=pool, **kind)

    def qube(name, *volumes, klass="AppVM"):
        by_name = {item.name: item for item in volumes}
        return types.SimpleNamespace(name=name, klass=klass, volumes=by_name)

    app = types.SimpleNamespace(
        pools={
            "safe": types.SimpleNamespace(name="safe", driver="zfs_encrypted"),
            "pl": types.SimpleNamespace(name="pl", driver="zfs_zvol"),
        },
        domains=[
            types.SimpleNamespace(name="dom0", klass="AdminVM"),
            qube("all-in", volume("private", "safe"), volume("root", "safe")),
            qube("all-out", volume("private", "pl"), volume("root", "pl")),
            qube(
                "both",
                volume("private", "safe"),
                volume("root", "pl"),
                volume("volatile", "pl", ephemeral=True),
                volume("kernel", "pl", rw=False),
            ),
        ],
    )
    assert list(status._outside(app)) == [status.Outside("both", "root", "pl")]


# --- text from disks

EVIL = "a\n\tb\x1b[2J\r\x07\x9b1m\u202ec\udcff\ud800\U000e0001é"
SHOWN = r"a\x0a\x09b\x1b[2J\x0d\x07\x9b1m\u202ec\xff\ud800\U000e0001é"


def test_text_becomes_printable():
    assert text.printable(EVIL) == SHOWN
    assert text.printable("x" * 300, 20) == "x" * 20 + "..."
    assert text.printable("plain text, 100 %") == "plain text, 100 %"


@given(st.binary())
def test_bytes_of_a_disk_survive_a_round_trip(value):
    decoded = text.from_disk(value)
    assert text.to_disk(decoded) == value
    shown = text.printable(decoded)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_output_is_printable_in_any_encoding(monkeypatch, encoding):
    for say, name in (output.say, "stdout"), (output.warn, "stderr"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        monkeypatch.setattr(sys, name, stream)
        say(EVIL + "\u20ac")
        (line,) = raw.getvalue().decode(encoding).splitlines()
        assert line.isprintable() and line.startswith(r"a\x0a\x09b\x1b[2J")


def test_json_output_is_ascii(capsys):
    output.say_json({EVIL: [EVIL]})
    out = capsys.readouterr().out
    assert out.isascii() and out.replace("\n", "").isprintable()
    assert json.loads(out) == {EVIL: [EVIL]}


def test_an_invalid_command_line_is_printed_escaped(capsys):
    with pytest.raises(SystemExit):
        main.parser().parse_args(["lock", "a", "b\x1b[2J"])
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_only_the_output_module_prints():
    """All output of the tool goes through output.py."""
    for file in (ROOT / "qubes_storage_zfs/tools").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            printed = isinstance(node, ast.Call) and (
                getattr(node.func, "id", "") == "print"
                or ast.unparse(node.func).startswith(("sys.std", "os.write"))
            )
            if printed and file.name != "output.py":
                raise AssertionError(f"{file.name}:{node.lineno}")


# --- the pool that a name means


def survey(*pools, marks=()):
    return pools_of.Survey(pools, marks, ())


def test_a_name_means_the_configured_pool(monkeypatch):
    monkeypatch.setattr(pools_of.importexport, "guid", lambda zpool: "1")
    ours = Pool("p", "zfs_encrypted", "tank/encryption/p", "1")
    theirs = Pool("p", "zfs_encrypted", "x/encryption/p", is_configured=False)
    more = dataclasses.replace(theirs, dataset="y/\x1bz")
    assert survey(theirs, ours).named("p") is ours
    assert survey(theirs).named("p") is theirs
    for several in (theirs, more), (ours, ours):
        with pytest.raises(Failed, match="several datasets") as caught:
            survey(*several).named("p")
        assert str(caught.value).isprintable()
    with pytest.raises(Failed, match="there is no ZFS pool q"):
        survey(ours).named("q")
    monkeypatch.setattr(pools_of.importexport, "guid", lambda zpool: "2")
    with pytest.raises(Failed, match="has the GUID 2"):
        survey(ours).named("p")
    monkeypatch.setattr(pools_of.importexport, "guid", lambda zpool: None)
    assert survey(ours).named("p") is ours


def test_a_mark_is_a_claim():
    mark = pools_of.ClaimedDataset(
        "x/encryption/p", "p", "x/encryption/p", True
    )
    claimed = pools_of.claimed_pool(mark)
    assert claimed == Pool(
        "p", "zfs_encrypted", "x/encryption/p", is_configured=False
    )
    plain = dataclasses.replace(mark, root=None)
    assert pools_of.claimed_pool(plain).driver == "zfs_zvol"
    ours = Pool("p", "zfs_encrypted", "x/encryption/p")
    assert survey(ours, marks=[mark]).unconfigured_roots() == []
    assert survey(claimed, marks=[mark, plain]).unconfigured_roots() == [mark]
    other = dataclasses.replace(mark, claimed_by="q")
    assert survey(ours, marks=[mark]).other_claim(ours) is None
    assert survey(ours, marks=[other]).other_claim(ours) == "q"


def test_an_unreadable_qubes_xml_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "qubes.xml"
    monkeypatch.setattr(common, "QUBES_XML", file)
    assert common.configured(None) == []
    file.write_text("<qubes><pools>")
    with pytest.raises(Failed, match="cannot be read"):
        common.configured(None)


# --- lock --all


def test_a_zpool_that_does_not_answer_delays_no_other(monkeypatch, capsys):
    """An unreadable qubes.xml does not prevent locking, either."""
    unlocked = asyncio.Event()

    async def unload(dataset):
        if dataset == "a/encryption/a":
            await asyncio.wait_for(unlocked.wait(), 10)
            raise errors.InUse(dataset, holders=("a qube",))
        unlocked.set()

    def pools(_):
        return [
            Pool(name, "zfs_encrypted", f"{name}/encryption/{name}")
            for name in ("a", "b")
        ]

    async def survey_disks(ours):
        marks = [pools_of.ClaimedDataset("x/y", "b", "x/y", True)]
        return pools_of.Survey(ours, marks, ["the zpool c cannot be read"])

    monkeypatch.setattr(lock.keys, "unload", unload)
    monkeypatch.setattr(lock, "configured", pools)
    monkeypatch.setattr(lock, "survey_disks", survey_disks)
    monkeypatch.setattr(pools_of.importexport, "guid", lambda zpool: None)
    everything = argparse.Namespace(all=True)
    assert asyncio.run(lock.run(everything)) == 1
    out, err = capsys.readouterr()
    assert out == "b is locked\nb (x/y) is locked\n"
    assert "a: a/encryption/a is in use by a qube" in err
    assert "the zpool c cannot be read" in err

    def unreadable(_):
        raise Failed("qubes.xml cannot be read")

    monkeypatch.setattr(lock, "configured", unreadable)
    assert asyncio.run(lock.run(everything)) == 1
    out, err = capsys.readouterr()
    assert out == "b (x/y) is locked\n" and "qubes.xml cannot be" in err


def test_a_zpool_exported_meanwhile_does_not_stop_locking(monkeypatch, capsys):
    """The survey has found a claim in it before."""

    async def unload(dataset):
        if dataset == "x/y":
            raise errors.PoolAbsent("x")

    async def two(ours):
        marks = [
            pools_of.ClaimedDataset("x/y", "gone", "x/y", True),
            pools_of.ClaimedDataset("z/y", "here", "z/y", True),
        ]
        return pools_of.Survey(ours, marks, [])

    monkeypatch.setattr(lock.keys, "unload", unload)
    monkeypatch.setattr(lock, "configured", lambda _: [])
    monkeypatch.setattr(lock, "survey_disks", two)
    everything = argparse.Namespace(all=True)
    assert asyncio.run(lock.run(everything)) == 0
    assert capsys.readouterr() == ("here (z/y) is locked\n", "")


# --- refusals


def test_attach_refuses_an_unsuitable_pool_or_zpool():
    ours = [Pool("p", "zfs_zvol", "tank/p")]
    with pytest.raises(Failed, match="qubesd has no ZFS pool q;"):
        attach._configured_pool("q", ours)
    with pytest.raises(Failed, match="^tank/p is a dataset, not a zpool"):
        attach._must_have_no_pool("tank/p", ours)
    with pytest.raises(
        Failed, match="already uses the zpool tank for the pool p;"
    ):
        attach._must_have_no_pool("tank", ours)


def test_attach_chooses_the_right_zpool():
    def zpool(name="stick", guid="1", state="ONLINE", status="", *devices):
        return ImportableZpool(name, guid, state, status, devices)

    pool = Pool("p", "zfs_zvol", "stick/p", "1")
    right, other = zpool(), zpool(guid="2")
    assert attach._choose("stick", pool, [other, right]) is right
    assert attach._choose("stick", None, [right, zpool("x", "3")]) is right
    unrecorded = dataclasses.replace(pool, guid=None)
    for chosen, candidates, reason in (
        (pool, [zpool("x")], "was not found on the disks of dom0"),
        (pool, [other], "on the connected disks has the GUID 2"),
        (None, [right, other], "several zpools have the name stick .GUIDs"),
        (unrecorded, [right, other], "which one has the pool p"),
        (pool, [right, zpool("\x1b")], "has several names .*x1b, stick"),
    ):
        with pytest.raises(Failed, match=reason):
            attach._choose("stick", chosen, candidates)
    away = zpool(status="was last accessed by another system")
    attach._must_be_importable(away, True)
    for candidate, reason in (
        (away, "another system used the zpool stick"),
        (zpool(state="UNAVAIL"), "UNAVAIL .no device is missing"),
        (zpool("stick", "1", "FAULTED", "bad", "sdx"), "bad .sdx"),
    ):
        with pytest.raises(Failed, match=reason):
            attach._must_be_importable(candidate, False)


def test_a_plain_or_absent_pool_is_refused(monkeypatch):
    plain = Pool("plain", "zfs_zvol", "tank/plain")
    safe = Pool("safe", "zfs_encrypted", "tank/encryption/safe")

    async def survey_all(_):
        return survey(plain, safe)

    async def state(_):
        return keys.KeyState(False, None, False, None)

    monkeypatch.setattr(pools_of, "qubesd", lambda: None)
    monkeypatch.setattr(pools_of, "survey", survey_all)
    monkeypatch.setattr(pools_of.keys, "state", state)
    monkeypatch.setattr(pools_of.importexport, "guid", lambda zpool: None)
    with pytest.raises(Failed, match="the pool plain is not encrypted"):
        asyncio.run(pools_of.encrypted_pool("plain"))
    with pytest.raises(
        Failed, match="safe does not exist, or its zpool is not"
    ):
        asyncio.run(pools_of.encrypted_pool("safe"))


def test_lock_reports_its_failures(monkeypatch, capsys):
    marks = [pools_of.ClaimedDataset("x y/z", "gone", "x y/z", True)]

    async def survey_disks(ours):
        return pools_of.Survey(ours, marks, [])

    monkeypatch.setattr(lock, "configured", lambda _: [])
    monkeypatch.setattr(lock, "survey_disks", survey_disks)
    everything = argparse.Namespace(all=True)
    assert asyncio.run(lock.run(everything)) == 1
    assert "x y/z is still unlocked, because" in capsys.readouterr().err
    marks.clear()
    with pytest.raises(Failed, match="there is no encrypted pool"):
        asyncio.run(lock.run(everything))


@pytest.mark.parametrize("holders", [(), ("work/root: dd", "b: cat")])
def test_a_changed_passphrase_reports_a_pool_that_stays_unlocked(
    monkeypatch, holders
):
    async def pool(name):
        return Pool(name, "zfs_encrypted", "tank/encryption/p")

    async def state(_):
        return keys.KeyState(True, None, True, "passphrase")

    async def change(*arguments, **options):
        raise errors.busy(errors.Busy("tank"), holders)

    monkeypatch.setattr(passwd, "encrypted_pool", pool)
    monkeypatch.setattr(passwd.keys, "state", state)
    monkeypatch.setattr(passwd.keys, "change", change)
    arguments = argparse.Namespace(pool="p", pbkdf2iters=100_000)
    text = "; ".join(holders) or "an unknown process uses it"
    with pytest.raises(Failed, match=f"p was changed, but .*unlocked: {text}"):
        asyncio.run(passwd.run(arguments))
