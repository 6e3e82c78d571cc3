# SPDX-License-Identifier: BSD-2-Clause
"""Channel programs that OpenZFS may stop between two changes.

With a version that lib/atomicity.lua does not name, a program may make only the
first of the changes that belong together.
"""

import itertools
from pathlib import Path

import pytest

from qubes_storage_zfs.store.container import Container
from qubes_storage_zfs.store.state import StateQuery
from qubes_storage_zfs.zfs import zcp

from ..support.zpools import MIB, read, write

pytestmark = pytest.mark.side_a

LOOP = b"for index = 1, #list do"
CUT = b"""for index = 1, #list do
        if index > %d then
            error("ended here")
        end"""
#: more than any list of changes in these tests has
MOST = 9


class Died(BaseException):
    """The process ended here."""


async def nothing(*_):
    pass


@pytest.fixture(autouse=True)
def unverified(monkeypatch):
    monkeypatch.setattr(zcp, "VERIFIED", ())
    yield
    zcp.whole_text.cache_clear()


def cut(lab, monkeypatch, name, count, operation):
    """Run *operation*; the process dies when *name* has made *count* changes.

    :return: whether there were more
    """
    whole, run, died = zcp.LIBRARY["atomicity"], zcp.run, []
    shorter = whole.replace(LOOP, CUT % count)
    assert shorter != whole

    def dying(programs, sync):
        if name not in (program.name for program in programs):
            return run(programs, sync)
        with monkeypatch.context() as patch:
            patch.setitem(zcp.LIBRARY, "atomicity", shorter)
            zcp.whole_text.cache_clear()
            try:
                return run(programs, sync)
            except Exception:
                died.append(name)
                raise Died from None
            finally:
                zcp.whole_text.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(zcp, "run", dying)
        # a dead process does not clean up
        patch.setattr(Container, "discard", nothing)
        try:
            lab.run(operation())
        except Died:
            pass
    lab.restart()
    return bool(died)


def each_cut(lab, monkeypatch, name, prepare):
    """Cut *name* after none, one, two ... changes, each on a fresh volume."""
    for count in range(MOST):
        volume, operation = prepare(f"work{count}")
        more = cut(lab, monkeypatch, name, count, operation)
        yield lab.again(volume), more
        if not more:
            assert count > 1
            return
    raise AssertionError("it has more changes than expected")


def generations(lab, volume):
    folder = f"vm/{volume.where.qube}/"
    return [name for name in lab.datasets("volume") if name.startswith(folder)]


def recover(lab, volume):
    """Do what the next qubesd does when it starts."""
    lab.run(volume.stop())
    assert lab.sweep_until(lambda: len(generations(lab, volume)) == 1)
    state = lab.run(volume.generations.state())
    assert (
        state.committed
        == f"{volume.dataset}@{list(revisions(lab, volume))[-1]}"
    )


def revisions(lab, volume):
    state = lab.run(volume.generations.state(StateQuery(revisions=True)))
    assert not state.dirty and not state.is_unfinished
    return [revision.id for revision in state.revisions]


def test_commit_interrupted_at_any_change_is_completed(lab, monkeypatch):
    def prepare(qube):
        volume = lab.private(qube, b"one")
        lab.start(volume)
        write(volume.path, b"two")
        return volume, volume.stop

    for volume, _ in each_cut(lab, monkeypatch, "commit", prepare):
        # /run is empty after a power loss: the disk alone decides
        Path(volume.state_file).unlink(missing_ok=True)
        recover(lab, volume)
        assert lab.content(volume, 3) == b"two"
        assert len(revisions(lab, volume)) == 3


def test_import_interrupted_at_any_change_has_old_or_new_content(
    lab, monkeypatch
):
    def prepare(qube):
        volume = lab.private(qube, b"one", revisions_to_keep=3)
        write(lab.run(volume.import_data(MIB)), b"new")
        return volume, lambda: volume.import_data_end(True)

    contents = []
    for volume, _ in each_cut(lab, monkeypatch, "make_current", prepare):
        lab.run(volume.stop())
        # the generation before keeps its revisions
        assert lab.sweep_until(lambda v=volume: len(generations(lab, v)) < 3)
        contents.append(lab.content(volume, 3))
        number = volume.where.number_of(volume.dataset)
        assert (number == 0) == (contents[-1] == b"one")
        assert len(generations(lab, volume)) == (1 if number == 0 else 2)
        state = lab.run(volume.generations.state())
        assert state.committed.startswith(f"{volume.dataset}@r")
    # the old content, then the new
    assert [key for key, _ in itertools.groupby(contents)] == [b"one", b"new"]


def test_start_interrupted_at_any_change_can_be_repeated(lab, monkeypatch):
    def prepare(qube):
        volume = lab.volatile(qube)
        return volume, volume.start

    for volume, _ in each_cut(lab, monkeypatch, "make_current", prepare):
        lab.run(volume.stop())
        lab.start(volume)
        assert read(volume.path) == b""
        assert lab.sweep_until(lambda v=volume: len(generations(lab, v)) == 1)
        lab.stop(volume)


def test_remove_interrupted_at_any_change_can_be_repeated(lab, monkeypatch):
    def prepare(qube):
        volume = lab.private(qube, b"one", revisions_to_keep=3)
        lab.session(volume, b"two")
        return volume, volume.remove

    for volume, more in each_cut(lab, monkeypatch, "remove", prepare):
        if more:
            lab.run(volume.stop())
            assert lab.content(volume, 3) == b"two"
            assert len(revisions(lab, volume)) >= 1
        lab.run(volume.remove())
        assert lab.sweep_until(lambda v=volume: not generations(lab, v))
