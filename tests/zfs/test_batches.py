# SPDX-License-Identifier: BSD-2-Clause
"""Batches: a channel program fails, and the others still succeed."""

import asyncio
import errno

import pytest

from qubes_storage_zfs.zfs import channel, zcp
from qubes_storage_zfs.zfs.batch import join
from qubes_storage_zfs.zfs.errors import Exists, NotFound, ZfsError

from ..support.counting import calls
from ..support.zpools import sh

MARK = "org.example:mark"

#: sets a property, or refuses if its argument says so
WORKS = b"""
if argv.refuse then
    return refuse(17, "marks", argv.dataset)
end
local errno = zfs.sync.set_prop(argv.dataset, "org.example:mark", argv.value)
if errno ~= 0 then
    return refuse(errno, "set_prop", argv.dataset)
end
return argv.value
"""
#: each makes a change first; the programs after it must still run
FAILS = {
    "an error in Lua": b"local missing = nil\nreturn missing.field\n",
    "a missing dataset": b'return (zfs.get_prop(argv.dataset .. "/no", "used"))',
    "a function of ZFS": b"return zfs.sync.destroy(argv.dataset, {})\n",
    "an error within all_or_none": b"""
return all_or_none({{function() error("by intent") end}})
""",
    "no memory": b"""
local all, text = {}, string.rep("x", 1048576)
while true do
    all[#all + 1] = text .. string.format("%d", #all)
end
""",
}
CHANGES_FIRST = b"""
zfs.sync.set_prop(argv.dataset, "org.example:mark", argv.value)
"""


@pytest.fixture
def add_programs(monkeypatch):
    """Add programs by name, for one test."""

    def add(**texts):
        for name, text in texts.items():
            monkeypatch.setitem(zcp.TEXTS, name, text)
        zcp.whole_text.cache_clear()

    yield add
    zcp.whole_text.cache_clear()


@pytest.fixture
def datasets(zpool):
    names = [f"{zpool}/batch{number}" for number in range(3)]
    for name in names:
        sh("zfs", "create", "-o", "canmount=off", name)
    yield names
    for name in names:
        sh("zfs", "destroy", name)


def mark(dataset):
    return sh("zfs", "get", "-Ho", "value", MARK, dataset).strip()


async def at_once(*requests):
    """Run each (name, dataset, arguments) in its own task, in one batch."""

    async def one(name, dataset, **arguments):
        with join("test") as batch:
            return await channel.change(
                name, dataset, {"dataset": dataset, **arguments}, batch=batch
            )

    tasks = [one(*request, **more) for *request, more in requests]
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("kind", FAILS)
def test_failing_program_does_not_affect_its_batch(
    add_programs, datasets, kind, caplog
):
    first, failing, last = datasets
    add_programs(works=WORKS, fails=CHANGES_FIRST + FAILS[kind])
    with calls() as made:
        results = asyncio.run(
            at_once(
                ("works", first, {"value": "one"}),
                ("fails", failing, {"value": "two"}),
                ("works", last, {"value": "three"}),
            )
        )
    assert made == ["fails+works+works"]
    assert [results[n].as_text() for n in (0, 2)] == ["one", "three"]
    assert isinstance(results[1], ZfsError)
    assert results[1].dataset == failing
    assert results[1].code == errno.ECHRNG
    # a maintainer needs the name in the journal
    assert failing in caplog.text
    # the failed program keeps its change, as if it ran alone
    assert [mark(name) for name in datasets] == ["one", "two", "three"]


def test_refusing_program_does_not_affect_its_batch(add_programs, datasets):
    add_programs(works=WORKS)
    first, refusing, last = datasets
    one, two, three = asyncio.run(
        at_once(
            ("works", first, {"value": "one"}),
            ("works", refusing, {"value": "two", "refuse": True}),
            ("works", last, {"value": "three"}),
        )
    )
    assert (one.as_text(), three.as_text()) == ("one", "three")
    assert isinstance(two, Exists)
    assert [mark(name) for name in datasets] == ["one", "-", "three"]


def test_instruction_limit_keeps_earlier_changes(
    add_programs, datasets, monkeypatch
):
    """The programs of a batch share one limit; changes before it are kept."""
    add_programs(works=WORKS, endless=b"while true do end\n")
    monkeypatch.setattr(zcp, "INSTRUCTION_LIMIT", 200_000)
    first, failing, _ = datasets
    done, failed = asyncio.run(
        at_once(
            ("works", first, {"value": "one"}),
            ("endless", failing, {}),
        )
    )
    assert done.as_text() == "one" and mark(first) == "one"
    assert isinstance(failed, ZfsError)


def test_failing_program_does_not_prevent_a_commit(lab, add_programs):
    """The commit creates its revision although another program fails."""
    volume = lab.private(content=b"one")
    add_programs(fails=FAILS["a missing dataset"])

    async def both():
        with join("test") as batch:
            return await asyncio.gather(
                volume.generations.commit(2, batch=batch),
                fails(),
                return_exceptions=True,
            )

    async def fails():
        with join("test") as batch:
            arguments = {"dataset": volume.dataset}
            await channel.change(
                "fails", volume.dataset, arguments, batch=batch
            )

    lab.start(volume)
    sh("dd", "if=/dev/urandom", f"of={volume.path}", "bs=1M", "count=1")
    with calls() as made:
        committed, failed = lab.run(both())
    assert "commit+fails" in made
    assert committed is None and isinstance(failed, ZfsError)
    assert not isinstance(failed, NotFound)
    lab.stop(volume)
    assert len(volume.revisions) == 2
