"""Volumes that are destroyed while qubes come and go."""

import asyncio

from qubes_storage_zfs import layout
from qubes_storage_zfs.container import Container
from qubes_storage_zfs.generations import Generations
from qubes_storage_zfs.zfs import channel, core

VID = "w1/root"


def test_a_removal_tells_that_it_is_tried_again(monkeypatch):
    """A volume may have been created under the same name meanwhile."""
    told = []
    answers = [
        {"origins": {}, "bookmarks": {"1": "z/p/vm/w1/root#b"}},
        {"origins": {}, "bookmarks": {}, "unfreed": "z/p/vm/w1/root"},
        {"origins": {}, "bookmarks": {}},
    ]

    async def change(_name, _dataset, arguments):
        told.append(arguments["again"])
        return answers.pop(0)

    async def destroy_bookmarks(_):
        pass

    monkeypatch.setattr(channel, "change", change)
    monkeypatch.setattr(core, "destroy_bookmarks", destroy_bookmarks)
    where = layout.volume_name("z/p/vm", VID)
    store = Container("z/p", "z/p/vm")
    asyncio.run(Generations(where, store, "z").forget())
    assert told == [False, True, True] and not answers
