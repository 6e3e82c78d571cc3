# SPDX-License-Identifier: BSD-2-Clause
"""Defects that tests/crash found, one test each; and signals."""

import itertools
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from ..crash.gate import Door, Gate, Stopped
from ..support.zpools import sh, write


def test_stop_after_an_interrupted_stop_adds_no_revision(lab):
    """qubesd was killed after the commit, before it removed its mark."""
    volume = lab.private(content=b"one")
    lab.start(volume)
    write(volume.path, b"two")
    lab.run(volume.stop())
    revisions = volume.revisions
    lab.restart()
    volume = lab.again(volume)
    assert Path(volume.state_file).exists()
    lab.stop(volume)
    assert volume.revisions == revisions
    assert lab.content(volume) == b"two"


@pytest.mark.parametrize("keep", [2, 0, -1])
def test_blank_volume_missing_from_qubes_xml_is_created_again(lab, keep):
    """qubesd was killed after create(), before it wrote qubes.xml."""
    volume = lab.private(revisions_to_keep=keep)
    lab.restart()
    again = lab.private(revisions_to_keep=keep, size=volume.size * 2)
    assert again.size == volume.size * 2
    assert again.revisions == {}
    lab.session(again, b"data")
    with pytest.raises(
        StoragePoolException, match="a volume of this name already exists"
    ):
        lab.private(revisions_to_keep=keep)
    assert lab.content(again) == b"data"


def test_started_volume_is_not_created_again(lab):
    volume = lab.private()
    lab.start(volume)
    with pytest.raises(
        StoragePoolException, match="a volume of this name already exists"
    ):
        lab.private()
    lab.stop(volume)


@pytest.fixture
def disturbed():
    """Send signals to the driver's threads continuously."""
    over = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    sent = Counter()

    def disturb():
        while not over.wait(0.002):
            for thread in threading.enumerate():
                if thread.name.startswith("zfs") and thread.ident:
                    signal.pthread_kill(thread.ident, signal.SIGUSR1)
                    sent[thread.name] += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    yield sent
    over.set()
    thread.join()
    signal.signal(signal.SIGUSR1, before)


def test_signals_do_not_cancel_channel_programs(lab, disturbed):
    """In ZFS, a signal can cancel a channel program, even while it runs."""
    volume = lab.private(content=b"0", revisions_to_keep=3)
    for number in range(1, 6):
        lab.session(volume, b"%d" % number)
        assert lab.run(lab.pool.store.state(volume.where)).current == 0
    assert lab.content(volume) == b"5"
    assert len(volume.revisions) == 3
    assert disturbed.total() > 100


@pytest.fixture
def gate(lab):
    with Door() as door:
        gate = door.gates[lab.container] = Gate()
        yield gate


def test_killed_removal_destroys_all_revisions(lab, gate):
    """The removal needs several coroutines (all_or_none() in atomicity.lua)."""
    for place in itertools.count(1):
        volume = lab.private(f"q{place}", b"content")
        for number in range(3, 25):
            sh("zfs", "snapshot", f"{volume.dataset}@r{number}")
        assert len(volume.revisions) == 23
        gate.open(0, place)
        try:
            lab.run(volume.remove())
        except Stopped:
            gate.open()
            lab.restart()
        else:
            break
        assert lab.run(lab.pool.store.state(volume.where)).current is None
        assert lab.datasets("snapshot") == []
    assert gate.passed == ["channel_program"] and place > 1
    assert lab.sweep_until(lambda: lab.datasets() == ["vm"])
