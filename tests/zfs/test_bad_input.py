# SPDX-License-Identifier: BSD-2-Clause
"""Invalid names, numbers and paths, traced down to ZFS.

Channel programs do not check names, so the tests check every name that
reaches libzfs_core. A refused input changes nothing on disk.

ZFS_TESTS_LONG=1 tries many more examples; ZFS_TESTS_SEED repeats a run.
"""

import asyncio
import os
import re
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.zfs import commands, lzc

from ..support.lab import Lab
from ..support.zpools import MIB, read, sh

pytestmark = pytest.mark.side_a

LONG = "ZFS_TESTS_LONG" in os.environ
SEED = int(os.environ.get("ZFS_TESTS_SEED", time.time_ns() if LONG else 0))
EXAMPLES = 3000 if LONG else 40

#: special in a path, a dataset name, a format string or on a terminal
PIECES = [
    *("/", "//", "/.", "/..", "@", "@r1", "#", "%", "%s", "%recv", "-f", "."),
    *("\0", "\n", "\x1b[2J", " ", "\udc80", "\u202e", "\u0660", "é", ":"),
    *("tank", "vm", "work", "private", "root", ".1", ".0", "r1", "x" * 256),
]
TEXT = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=4).map("/".join),
)
NO_TEXT = st.one_of(st.none(), st.integers(), st.floats(), st.binary())

#: a second definition, so that naming.py does not check itself
COMPONENT = r"(?!\.\.?(/|@|$))[A-Za-z0-9_.:-]+"
NAME = re.compile(
    rf"[A-Za-z][A-Za-z0-9_.-]*(/{COMPONENT})*(@{COMPONENT})?", re.ASCII
)
PLAIN = re.compile(r"[A-Za-z0-9_.:@ -]*", re.ASCII)
VID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[a-z0-9][a-z0-9_-]*", re.ASCII)
READS = {"channel_program_nosync"}


def fuzzed(examples=EXAMPLES, **strategies):
    """Like given(), but with fixed examples unless ZFS_TESTS_LONG is set."""

    def decorate(test):
        checks = list(HealthCheck)
        profile = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=checks,
        )
        return profile(seed(SEED)(given(**strategies)(test)))

    return decorate


def texts_in(value):
    """Yield all strings in an argument of libzfs_core."""
    if isinstance(value, bytes):
        yield value.decode()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)


class World:
    """A pool with some volumes, and a spy on all calls to ZFS."""

    def __init__(self, zpool, patch):
        self.lab = Lab(zpool)
        self.volume = self.lab.private(content=b"data", revisions_to_keep=5)
        self.app = self.lab.clone_of(self.lab.private("tmpl", name="root"))
        sh("zfs", "create", "-s", "-V", "1M", f"{self.lab.container}/zvol")
        self.zvol = f"{self.lab.container}/zvol"
        # one loop for all: creating a loop takes longer than a refusal
        self.loop = asyncio.new_event_loop()
        self.calls = Counter()
        self.tried = Counter()
        call, run = lzc.call, commands.run

        def spy(what, subject, *args):
            names = [part for arg in args[:1] for part in texts_in(arg)]
            more = args[4:5] if "program" in what else args[1:]
            for text in [*names, *(t for arg in more for t in texts_in(arg))]:
                self.check_name(text)
            result = call(what, subject, *args)
            # a call that ZFS or a channel program refuses changes nothing
            refused = isinstance(result, dict) and all(
                isinstance(each, dict) and b"errno" in each
                for each in result.values()
            )
            read_only = what in READS or refused
            self.calls["reads" if read_only else "changes"] += 1
            return result

        async def spy_run(program, *arguments, **more):
            self.calls["changes"] += 1
            for text in arguments[-1:]:
                self.check_name(text)
            return await run(program, *arguments, **more)

        patch.setattr(lzc, "call", spy)
        patch.setattr(commands, "run", spy_run)

    def check_name(self, text):
        pattern = NAME if "/" in text else PLAIN
        self.calls["names"] += 1
        if not pattern.fullmatch(text) or len(text) > 255:
            self.calls["bad names"] += 1
            raise AssertionError(f"{text!r} reached ZFS")

    def refused(self, what, verb):
        """Assert that the operation fails with a message, without changes."""
        self.tried[what] += 1
        before = self.calls["changes"]
        with pytest.raises(StoragePoolException) as caught:
            self.loop.run_until_complete(verb())
        text = str(caught.value)
        assert len(text) > 30 and text.isprintable() and text.encode()
        assert text % () == text.replace("%%", "%")
        assert self.calls["changes"] == before

    def on_disk(self):
        """Return what ZFS reports, without values that change by themselves."""
        names = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", "tank")
        mine = sh("zfs", "get", "-Hprt", "all", "all", self.lab.container)
        steady = [
            line
            for line in mine.split("\n")
            if not re.search(r"\t(used|avail|objset|refer|usedby|snapsh)", line)
        ]
        return names, steady


@pytest.fixture(scope="module")
def world(zpool):
    with pytest.MonkeyPatch.context() as patch:
        made = World(zpool, patch)
        yield made
        made.loop.close()
        print("tried", dict(made.tried), "calls", dict(made.calls))
        assert made.calls["names"] > 0 and made.calls["bad names"] == 0


@pytest.fixture(autouse=True)
def nothing_touched(world):
    print(f"seed {SEED}, {EXAMPLES} examples each")
    before = world.on_disk()
    yield
    assert world.on_disk() == before
    assert world.lab.content(world.volume) == b"data"
    assert world.volume.store.reserved == set()


@fuzzed(vid=TEXT, save=st.booleans())
def test_invalid_vid_is_refused(world, vid, save):
    assume(not VID.fullmatch(vid) or len(vid) > 200)
    pool = world.lab.pool
    config = {"name": "private", "vid": vid, "rw": True, "size": MIB}
    volume = pool.init_volume(
        world.lab.vm("x"), {**config, "save_on_stop": save}
    )
    verbs = [volume.create, volume.start, volume.verify, volume.remove]
    if save:
        verbs += [
            volume.export,
            volume.revert,
            lambda: volume.import_data(MIB),
            lambda: volume.import_volume(world.volume),
            lambda: world.volume.import_volume(volume),
            lambda: volume.resize(2 * MIB),
        ]
    for verb in verbs:
        world.refused("vid", verb)
    world.loop.run_until_complete(volume.stop())
    world.loop.run_until_complete(
        volume.export_end(f"/dev/zvol/{world.lab.container}/vm/{vid}")
    )
    assert (volume.path, volume.usage, volume.revisions) == (None, 0, {})
    assert not volume.is_dirty() and not volume.is_running()


@fuzzed(vid=st.one_of(TEXT, st.none(), st.integers()))
def test_get_volume_raises_key_error_for_unknown_vids(world, vid):
    assume(vid not in ("work/private", "tmpl/root"))
    world.tried["get_volume"] += 1
    pool = ZfsZvolPool(name=world.lab.name, **world.lab.options)
    with pytest.raises(KeyError):
        pool.get_volume(vid)
    assert vid not in pool.volumes


def is_size(value):
    try:
        return 0 <= int(value) <= 1 << 60
    except (TypeError, ValueError, OverflowError):
        return False


@fuzzed(
    size=st.one_of(
        TEXT,
        NO_TEXT,
        st.integers(max_value=-1),
        st.integers(min_value=(1 << 60) + 1),
        st.sampled_from(["-1", "1e9", "0x10", "1G", "nan", "9" * 5000]),
    )
)
def test_invalid_size_is_refused(world, size):
    assume(not is_size(size))
    volume = world.volume
    for verb in volume.resize, volume.import_data:
        world.refused("size", lambda: verb(size))
    assert volume.size == 4 * MIB
    if isinstance(size, int):
        new = world.lab.volume("new", save_on_stop=True, size=size)
        world.refused("size of a new volume", new.create)


@fuzzed(
    revision=st.one_of(
        TEXT,
        NO_TEXT.filter(lambda value: value is not None),
        st.sampled_from(["r0", "r01", "r2", "r9", "R1", "r1@", "r\u0661"]),
        st.integers(min_value=3).map("r{}".format),
    )
)
def test_unknown_revision_is_refused(world, revision):
    # r1 is the only revision; r2 is the committed state
    assume(revision != "r1")
    world.refused("revision", lambda: world.volume.revert(revision))


@fuzzed(tail=TEXT, head=st.sampled_from(["", "/dev/zvol/", "/dev/zvol/HOME/"]))
def test_export_end_ignores_arbitrary_paths(world, tail, head):
    """export_end() accepts only a path that export() returned."""
    path = head.replace("HOME", f"{world.lab.container}/vm") + tail
    world.tried["path"] += 1
    before = world.calls["changes"]
    world.loop.run_until_complete(world.volume.export_end(path))
    assert world.calls["changes"] == before


def test_export_end_ignores_paths_of_other_datasets(world):
    """Try an import, another volume's export, the volume, and a snapshot."""
    volume, lab = world.volume, world.lab
    other = lab.pool.get_volume("tmpl/root")
    importing = lab.run(volume.import_data(MIB))
    theirs = lab.run(other.export())
    again = lab.again(volume)
    before = world.calls["changes"]
    for path in importing, theirs, volume.path, other.path, f"{theirs}@r1":
        lab.run(volume.export_end(path))
    lab.run(again.export_end(importing))
    assert world.calls["changes"] == before
    assert read(importing) == read(theirs) == b""
    lab.run(volume.import_data_end(False))
    lab.run(other.export_end(theirs))


def test_import_data_end_without_an_import_is_refused(world):
    world.refused("import_data_end", lambda: world.volume.import_data_end(True))
    world.loop.run_until_complete(world.volume.import_data_end(False))


def is_imported(container):
    return isinstance(container, str) and container.partition("/")[0] == "tank"


@fuzzed(container=TEXT, tank=st.booleans())
def test_invalid_container_is_refused(world, container, tank):
    container = f"tank/{container}" if tank else container
    # the driver would create a valid name in an imported zpool
    assume(not (is_imported(container) and NAME.fullmatch(container)))
    pool = ZfsZvolPool(name="x", container=container)
    world.refused("container", pool.setup)
    assert pool.list_volumes() == [] and pool.size is None


@fuzzed(
    name=TEXT,
    devices=st.one_of(
        TEXT,
        st.lists(
            st.sampled_from(
                ["/dev/null", "/dev/vda", "/etc/passwd", "/dev/zvol", "\0", "-"]
            ),
            max_size=3,
        ).map(",".join),
    ),
)
def test_invalid_devices_and_zpool_names_are_refused(world, name, devices):
    assume(not re.search(r"/dev/vd[b-z]", devices))
    pool = ZfsZvolPool(name=name, block_devices=devices)
    world.refused("devices", pool.setup)


OPTIONS = ["revisions_to_keep", "ephemeral_volatile", "volblocksize"]
OPTIONS += ["compression", "snap_on_start_forensics"]


@fuzzed(
    name=TEXT,
    options=st.dictionaries(st.sampled_from(OPTIONS), TEXT),
    both=st.booleans(),
)
def test_invalid_options_and_pool_names_are_refused(world, name, options, both):
    """The container is a zvol, so the pool is refused in any case."""
    given_options = {"container": world.zvol, **options}
    if both:
        given_options["block_devices"] = "/dev/null"
    pool = ZfsZvolPool(name=name, **given_options)
    world.refused("options", pool.setup)
