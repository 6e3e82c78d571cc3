# SPDX-License-Identifier: BSD-2-Clause
"""Disposable volumes that no qube has are destroyed, and no others."""

import asyncio
import types

import pytest

from qubes_storage_zfs.driver import discarded
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.container import Container
from qubes_storage_zfs.store.generations import Generations
from qubes_storage_zfs.zfs import channel, lzc
from qubes_storage_zfs.zfs.reply import Reply

VID = "w1/root"


def app(*volumes):
    """Return an application object with one qube that has *volumes*."""
    pool = types.SimpleNamespace(name="p")
    objects = {
        vid: types.SimpleNamespace(pool=pool, vid=vid) for vid in volumes
    }
    qube = types.SimpleNamespace(klass="AppVM", storage=True, volumes=objects)
    vmm = types.SimpleNamespace(offline_mode=False)
    return types.SimpleNamespace(vmm=vmm, domains=[qube])


def collected(monkeypatch, before, after):
    """Return the vids that collect() destroys.

    :param before: vids of the qube's volumes at the start
    :param after: the same when no preparation runs any more
    """
    destroyed = []
    qubes = app(*before)

    async def read(*_):
        return Reply({"a b/root": "", VID: ""})

    async def idle(_):
        qubes.domains[:] = app(*after).domains

    async def destroy(_pool, vid, _mark):
        destroyed.append(vid)

    monkeypatch.setattr(channel, "read", read)
    monkeypatch.setattr(discarded, "_destroy", destroy)
    pool = types.SimpleNamespace(
        name="p", qubes_root="z/p/vm", container="z/p", wait_until_idle=idle
    )
    asyncio.run(discarded.collect(pool, qubes, wait=True))
    return destroyed


def test_a_volume_that_a_qube_has_again_is_not_destroyed(monkeypatch):
    assert collected(monkeypatch, [], []) == [VID]
    assert collected(monkeypatch, [VID], [VID]) == []
    assert collected(monkeypatch, [], [VID]) == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_creation_in_progress_postpones_the_collection(monkeypatch, offline):
    """A qube in creation has no storage yet, and may get the volume."""

    async def read(*_):
        return Reply({VID: ""})

    monkeypatch.setattr(channel, "read", read)
    qubes = app()
    qubes.domains[0].storage = None
    qubes.vmm.offline_mode = offline
    pool = types.SimpleNamespace(name="p", qubes_root="z/p/vm", container="z/p")
    pool.store = types.SimpleNamespace(is_compared=True)
    asyncio.run(discarded.collect(pool, qubes))
    # an offline copy of the qubes decides nothing
    assert pool.store.is_compared is offline
    destroyed = []

    async def destroy(_pool, vid, _mark):
        destroyed.append(vid)

    monkeypatch.setattr(discarded, "_destroy", destroy)
    qubes.domains[0].storage = True
    asyncio.run(discarded.collect_once(pool, qubes))
    assert destroyed == ([] if offline else [VID])


def test_a_remote_qube_counts_as_loaded():
    """The storage of a RemoteVM is None, like that of a qube being loaded."""
    qubes = app(VID)
    bare = types.SimpleNamespace(klass="RemoteVM", storage=None, volumes={})
    qubes.domains.append(bare)
    assert discarded.volumes_of_qubes(qubes) == {("p", VID)}
    bare.klass = "AppVM"
    assert discarded.volumes_of_qubes(qubes) is None


def test_a_repeated_removal_is_marked_as_a_retry(monkeypatch):
    """Another volume of the same name may exist by then."""
    retries = []
    answers = [
        {"origins": {}, "bookmarks": {"1": "z/p/vm/w1/root#b"}},
        {"origins": {}, "bookmarks": {}, "unfreed": "z/p/vm/w1/root"},
        {"origins": {}, "bookmarks": {}},
    ]

    async def change(_name, _dataset, arguments, **_):
        retries.append(arguments["retry"])
        return Reply(answers.pop(0))

    async def destroy_bookmarks(_):
        pass

    monkeypatch.setattr(channel, "change", change)
    monkeypatch.setattr(lzc, "destroy_bookmarks", destroy_bookmarks)
    where = naming.volume_name("z/p/vm", VID)
    store = Container("z/p", "z/p/vm")
    asyncio.run(Generations(where, store, "z").remove())
    assert retries == [False, True, True] and not answers


def test_bookmark_names_may_have_any_bytes(monkeypatch):
    """An untrusted disk may have them; an exception would escape stop()."""
    calls = []
    answers = {"get_bookmarks": {b"\xff": {}}, "destroy_bookmarks": None}

    def call(function, subject, *arguments):
        calls.append((function, subject, arguments[0]))
        return answers[function]

    monkeypatch.setattr(lzc, "call", call)
    dataset = "z/p/vm/w1/root"
    assert asyncio.run(lzc.destroy_bookmarks_of(dataset))
    assert calls == [
        ("get_bookmarks", dataset, dataset.encode()),
        ("destroy_bookmarks", dataset, [dataset.encode() + b"#\xff"]),
    ]
