# SPDX-License-Identifier: BSD-2-Clause
"""The phases of a volume: every event in every phase, without ZFS."""

import asyncio
import inspect
import itertools
import logging
import re
import types

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver import operations
from qubes_storage_zfs.driver.lifecycle import IllegalEvent, Lifecycle
from qubes_storage_zfs.driver.phases import TRANSITIONS, Event, Phase
from qubes_storage_zfs.store import messages
from qubes_storage_zfs.store.messages import Refused
from qubes_storage_zfs.zfs.errors import InUse

CELLS = list(itertools.product(Phase, Event))
#: phases in which start() may have returned a generation
WITH_GENERATION = {Phase.UNKNOWN, Phase.IN_USE, Phase.ABANDONED}


class Volume:
    """A volume and its qube, as far as a lifecycle uses them."""

    vid = "work/private"
    pool = types.SimpleNamespace(name="tank")
    save_on_stop = True

    def __init__(self):
        self.is_noted = False
        self.state = "Running"
        self.startup_lock = asyncio.Lock()
        self.app = self
        self.vmm = types.SimpleNamespace(offline_mode=False)
        self.lifecycle = Lifecycle(types.SimpleNamespace(volume=self, vm=self))

    def get_power_state(self):
        return self.state

    def is_running(self):
        return not self.lifecycle.phase.is_halted and self.is_noted


@pytest.fixture(name="volume")
def fixture_volume(monkeypatch):
    monkeypatch.setattr(Lifecycle, "strict", True)
    return Volume()


def in_phase(volume, phase):
    lifecycle = volume.lifecycle
    lifecycle.phase = phase
    lifecycle.generation = 7 if phase in WITH_GENERATION else None
    return lifecycle


@pytest.mark.parametrize(("phase", "event"), CELLS)
def test_every_event_in_every_phase(volume, phase, event, caplog, monkeypatch):
    lifecycle = in_phase(volume, phase)
    after = TRANSITIONS[phase].get(event)
    if after is not None:
        lifecycle.fire(event)
        assert lifecycle.phase is after
        assert lifecycle.generation == (7 if keeps(phase, after) else None)
        return
    with pytest.raises(
        IllegalEvent, match=f"event {event.name} in phase {phase.name}"
    ):
        lifecycle.fire(event)
    assert lifecycle.phase is phase
    # qubesd goes on as after a restart, and logs it
    monkeypatch.setattr(Lifecycle, "strict", False)
    lifecycle.fire(event)
    assert lifecycle.phase is Phase.UNKNOWN and lifecycle.generation is None
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert f"event {event.name} in phase {phase.name}" in record.getMessage()


def keeps(before, after):
    return before in WITH_GENERATION and after in WITH_GENERATION


def test_a_volume_is_never_stuck(monkeypatch):
    """A start and a stop of a qube succeed in every phase."""
    monkeypatch.setattr(Lifecycle, "strict", False)
    for phase in Phase:
        lifecycle = in_phase(Volume(), phase)
        lifecycle.fire(Event.START)
        lifecycle.started(3)
        assert lifecycle.phase in (Phase.IN_USE, Phase.UNKNOWN)
        assert lifecycle.generation == 3
        lifecycle.fire(Event.STOP)
        lifecycle.fire(Event.STOPPED)
        assert lifecycle.phase is Phase.HALTED
        assert lifecycle.generation is None


def documented():
    """Return the table in the docstring of Lifecycle."""
    transitions = {}
    text = inspect.getdoc(Lifecycle)
    tables = re.split(r"^event +", text, flags=re.MULTILINE)[1:]
    for table in tables:
        head, _, *rows = table.split("\n")
        phases = [Phase[name] for name in head.split()]
        for row in itertools.takewhile(lambda row: row[0] != "=", rows):
            event, *cells = row.split()
            for phase, cell in zip(phases, cells, strict=True):
                after = phase if cell == "=" else cell
                transitions[phase, Event[event]] = (
                    after
                    if isinstance(after, Phase) or cell == "."
                    else Phase[cell]
                )
    return transitions


def test_the_documented_table_matches_the_code():
    used = {
        (phase, event): TRANSITIONS[phase].get(event, ".")
        for phase, event in CELLS
    }
    assert documented() == used


def test_phases_that_may_have_a_generation():
    assert {p for p in Phase if p.may_have_generation} == WITH_GENERATION
    for phase, event in CELLS:
        after = TRANSITIONS[phase].get(event)
        if after is Phase.IN_USE:
            # the volume has a generation, or started() sets it
            assert phase is Phase.IN_USE or event is Event.STARTED


def test_a_session_is_followed_by_a_preparation(volume):
    lifecycle = volume.lifecycle
    assert not lifecycle.in_use
    lifecycle.fire(Event.START)
    lifecycle.started(3)
    assert lifecycle.in_use and not volume.is_running()
    with pytest.raises(Refused) as caught:
        volume.is_noted = True
        lifecycle.must_be_halted()
    assert str(caught.value) == messages.RUNNING
    lifecycle.fire(Event.STOP)
    lifecycle.fire(Event.STOPPED)
    # qubesd removes its note when all volumes of the qube have stopped
    assert volume.is_noted and not lifecycle.in_use
    lifecycle.fire(Event.PREPARE)
    lifecycle.fire(Event.PREPARING)
    assert not lifecycle.is_prepared
    lifecycle.fire(Event.PREPARED)
    assert lifecycle.is_prepared
    lifecycle.fire(Event.DISCARDED)
    assert lifecycle.phase is Phase.HALTED


def test_a_preparation_that_is_requested_again_is_repeated(volume):
    lifecycle = in_phase(volume, Phase.PREPARING)
    lifecycle.fire(Event.PREPARE)
    lifecycle.fire(Event.PREPARED)
    assert lifecycle.phase is Phase.TO_PREPARE


def test_a_start_drops_a_preparation_requested_meanwhile(volume):
    """The content that a qube uses must not be reset."""
    lifecycle = in_phase(volume, Phase.HALTED)
    lifecycle.fire(Event.START)
    lifecycle.fire(Event.PREPARE)
    lifecycle.started(3)
    assert lifecycle.phase is Phase.IN_USE and lifecycle.generation == 3


def test_a_missing_stop_is_waited_for_once(volume, caplog):
    lifecycle = in_phase(volume, Phase.IN_USE)
    volume.is_noted, volume.state = True, "Halted"
    assert lifecycle.is_stopping
    lifecycle.expect_no_stop()
    lifecycle.expect_no_stop()
    assert len(caplog.records) == 1
    assert not lifecycle.is_stopping and lifecycle.in_use
    assert lifecycle.generation == 7
    # the stop comes late, and fails
    lifecycle.fire(Event.STOP)
    assert lifecycle.is_stopping and lifecycle.generation == 7


def test_a_volume_of_a_starting_qube_is_not_halted(volume):
    lifecycle = in_phase(volume, Phase.IN_USE)
    assert not lifecycle.is_starting

    async def start():
        async with volume.startup_lock:
            assert lifecycle.is_starting
            with pytest.raises(Refused):
                lifecycle.must_be_halted()

    asyncio.run(start())


@pytest.mark.parametrize(
    ("phase", "saves", "current", "is_disposable", "owns"),
    [
        (Phase.HALTED, True, 3, False, True),
        (Phase.HALTED, False, 3, True, True),
        (Phase.HALTED, False, 3, False, False),
        (Phase.HALTED, False, None, False, True),
        (Phase.FOREIGN, True, 3, False, False),
        (Phase.FOREIGN, True, None, False, False),
    ],
)
def test_a_volume_owns_no_content_of_a_removed_qube(
    volume, phase, saves, current, is_disposable, owns
):
    volume.save_on_stop = saves
    lifecycle = in_phase(volume, phase)
    state = types.SimpleNamespace(current=current, is_disposable=is_disposable)
    assert lifecycle.owns(state) is owns


# --- the journal, and the prefix of errors


def reported(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records]


def test_an_operation_logs_one_line(caplog):
    caplog.set_level(logging.INFO)
    with operations.operation("stop", "x/v", "tank", "work:v") as operation:
        operation.note("stop committed generation 3")
    with operations.operation("stop", "x/v", "tank") as operation:
        pass
    [(level, line)] = reported(caplog)
    assert level == "INFO"
    assert re.fullmatch(
        r"work:v in pool tank: stop committed generation 3 \(\d\.\d\d s\)", line
    )


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Refused(messages.RUNNING), messages.RUNNING),
        (
            Refused(messages.BAD_SIZE, size="5%"),
            "5%% is not a valid volume size",
        ),
        (InUse("z/a", holders=("qube x",)), "z/a is in use by qube x"),
    ],
)
def test_a_failure_has_its_prefix_and_logs_nothing(caplog, failure, reason):
    caplog.set_level(logging.INFO)
    with pytest.raises(StoragePoolException) as caught:
        with operations.operation("revert", "x/v", "tank") as operation:
            operation.note("revert created generation 3")
            raise failure
    text = str(caught.value)
    assert text.startswith("Cannot revert x/v in pool tank: ")
    assert reason in text
    assert not caplog.records
