# SPDX-License-Identifier: BSD-2-Clause
"""Count the ZFS calls and transaction groups of each operation."""

import asyncio
import os
from pathlib import Path

import pytest

from qubes_storage_zfs.zfs import channel, lzc

from ..support.background import afterwards
from ..support.counting import cost, now, quiet, rest
from ..support.operations import together
from ..support.report import said
from ..support.zpools import MIB, write

#: Calls of libzfs_core, each one ioctl, by the names of their channel programs.
#: A + joins programs that ran as one batch. "old-clone": a call before OpenZFS
#: 2.4 only; later versions clone in the channel program.
CALLS = {
    "start": "state+state+state state create old-clone make_current+make_current",
    "stop": "commit",
    "after stop": "state+state reset+reset",
    "start ready": "state+state+state",
    "stop again": "commit",
    "after stop again": "state+state reset+reset",
    "start of a changed template": "state+state+state state old-clone make_current",
    "revisions": "state",
    "usage": "state",
    "pool": "space",
    "revert": "state*2 old-clone make_current",
    "clone": "state*3 old-clone make_current",
    "export": "state*2 clone",
    "export_end": "discard",
    "import": "state create",
    "import_end": "make_current state",
    "create": "state create*2 make_current",
    "create another": "state create make_current",
    "resize": "state commit",
    "remove": "state remove",
}
#: Maximum number of transaction groups that finish during the operation. One
#: more is allowed if two calls fall into different transaction groups.
TXGS = {
    "start": 3,
    "stop": 2,
    "after stop": 2,
    "start ready": 0,
    "stop again": 2,
    "after stop again": 2,
    "start of a changed template": 3,
    "revisions": 0,
    "usage": 0,
    "pool": 0,
    "revert": 3,
    "clone": 3,
    "export": 3,
    "export_end": 3,
    "import": 3,
    "import_end": 2,
    "create": 4,
    "create another": 3,
    "resize": 3,
    "remove": 2,
}


def listed(text):
    """Return the calls, sorted by name."""
    made = []
    for word in text.split():
        name, _, times = word.partition("*")
        if name.startswith("old-") and lzc.version_numbers() >= (2, 4):
            continue
        made += [name.removeprefix("old-")] * int(times or 1)
    return sorted(made)


class Counter:
    """Run operations, and record the cost of each.

    :ivar made: calls, by the operation's name
    :ivar txgs: transaction groups that finished during the operation
    """

    def __init__(self, zpool):
        self.zpool = zpool
        self.made, self.txgs = {}, {}

    def __call__(self, name, *verbs):
        async def all_of_it():
            results = await self._count(name, lambda: together(*verbs))
            if name.startswith("stop"):
                await self._count(f"after {name}", afterwards)
            await afterwards()
            return results

        return asyncio.run(all_of_it())[0]

    async def _count(self, name, work):
        rest(self.zpool)
        with cost(self.zpool) as spent:
            results = await work()
        self.made[name], self.txgs[name] = spent.calls, spent.txgs
        return results


@pytest.fixture
def counted(zpool):
    with quiet():
        yield Counter(zpool)


def test_each_operation_makes_the_expected_calls(lab, counted):
    root = lab.private("tmpl", b"v1", name="root")
    private = lab.private("app", b"data", revisions_to_keep=3)
    app, volatile = lab.clone_of(root), lab.volatile("app")
    copy = lab.private("copy")
    lab.run(channel.clones_in_programs(lab.pool.zpool))
    qube = app, volatile, private

    for start, stop in ("start", "stop"), ("start ready", "stop again"):
        counted(start, *(volume.start for volume in qube))
        for volume in qube:
            Path(volume.state_file).touch()
            write(volume.path, os.urandom(MIB))
        counted(stop, *(volume.stop for volume in qube))
        for volume in qube:
            Path(volume.state_file).unlink()
    lab.session(root, b"v2")
    counted("start of a changed template", *(v.start for v in qube))
    lab.stop(*qube)
    counted("revisions", now(lambda: private.revisions))
    counted("usage", now(lambda: private.usage))
    counted("pool", now(lambda: (lab.pool.size, lab.pool.usage)))
    counted("revert", private.revert)
    counted("clone", lambda: copy.import_volume(private))
    path = counted("export", private.export)
    counted("export_end", lambda: private.export_end(path))
    path = counted("import", lambda: private.import_data(4 * MIB))
    write(path, b"new")
    counted("import_end", lambda: private.import_data_end(True))
    counted("create", lab.volume("new", save_on_stop=True).create)
    another = lab.volume("new", "root", save_on_stop=True)
    counted("create another", another.create)
    counted("resize", lambda: private.resize(8 * MIB))
    counted("remove", another.remove)

    waited = ", ".join(f"{name} {n}" for name, n in counted.txgs.items())
    said.append(f"transaction groups waited for: {waited}")
    assert counted.made == {name: listed(text) for name, text in CALLS.items()}
    for name, most in TXGS.items():
        assert counted.txgs[name] <= most, name
