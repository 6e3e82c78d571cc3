# SPDX-License-Identifier: BSD-2-Clause
"""A list of volumes that arrives after the deadline is used."""

import threading
import time

import pytest

from qubes_storage_zfs.store.listing import Listing
from qubes_storage_zfs.store.pointer import Pointer
from qubes_storage_zfs.zfs import errors, runtime, zcp
from qubes_storage_zfs.zfs.reply import Reply


def test_a_late_list_becomes_the_last_known_list(monkeypatch):
    gate = threading.Event()

    def run(programs, sync):
        gate.wait()
        answer = {"work/private": "3", "no vid": "0"}
        programs[0].note(Reply(answer))
        return [Reply(answer)]

    monkeypatch.setattr(runtime, "_current", runtime.Runtime())
    monkeypatch.setattr(zcp, "run", run)
    listing = Listing("tank/pool/vm")
    with pytest.raises(errors.SilentZpool):
        listing.now()
    assert listing.last == {}
    gate.set()
    while not listing.last:
        time.sleep(0.01)
    assert listing.last == {"work/private": Pointer(3)}
    assert listing.now() == listing.last
