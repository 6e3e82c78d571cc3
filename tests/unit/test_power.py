# SPDX-License-Identifier: BSD-2-Clause
"""The model of the power cut tests detects violations."""

import pytest

from tests.power import tags
from tests.power.model import KEEP, World

VID = "a/private"
BLOCKS = 4
ZEROES = (tags.ZERO,) * BLOCKS


def whole(name):
    return (name,) * BLOCKS


@pytest.fixture
def world():
    """Return a world with one halted volume, which has the content "one"."""
    world = World()
    done(world, "create", 1, blocks=BLOCKS)
    done(world, "import", 1, content="one", blocks=BLOCKS)
    return world


def start(world, operation, vid=VID, **fields):
    world.start({"vid": vid, "operation": operation, **fields})


def done(world, operation, states, vid=VID, **fields):
    start(world, operation, vid, **fields)
    world.finish({"vid": vid, "states": states})


def write(world, content, extents, end=True):
    start(world, "write", content=content, extents=extents)
    if end:
        world.finish({"vid": VID, "states": 1})


def violations(world, *states, vid=VID):
    world.judge({vid: list(states)} if states else {})
    return world.violations


def test_an_intact_committed_state_is_accepted(world):
    assert not violations(world, whole("one"))


def test_a_lost_committed_state_is_detected(world):
    assert violations(world)


@pytest.mark.parametrize("content", ["two", tags.ZERO])
def test_a_changed_committed_state_is_detected(world, content):
    assert violations(world, whole(content))


@pytest.mark.parametrize("content", ["one", "two"])
def test_an_unsynced_block_may_be_old_or_new(world, content):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert not violations(world, whole("one"), ("one", content, "one", "one"))


def test_an_unsynced_block_with_other_content_is_detected(world):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert violations(world, whole("one"), ("one", "three", "one", "one"))


def test_a_block_of_an_unfinished_write_may_be_old_or_new(world):
    done(world, "start", 1)
    write(world, "two", [(0, 4)], end=False)
    assert not violations(world, whole("one"), ("two", "one", "two", "one"))


@pytest.mark.parametrize("content, wrong", [("one", True), ("two", False)])
def test_a_synced_block_must_be_new(world, content, wrong):
    done(world, "start", 1)
    write(world, "two", [(1, 1)])
    done(world, "sync", 1)
    states = whole("one"), ("one", content, "one", "one")
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("states", [["one"], ["one", "two"]])
def test_recovery_must_commit_synced_writes(world, states):
    done(world, "start", 1)
    write(world, "two", [[0, BLOCKS]])
    done(world, "sync", 1)
    assert bool(violations(world, *map(whole, states))) == (states == ["one"])


@pytest.mark.parametrize("states", [1, 2])
def test_a_session_without_a_write_must_not_add_a_revision(world, states):
    done(world, "start", 1)
    assert bool(violations(world, *[whole("one")] * states)) == (states == 2)


@pytest.mark.parametrize(
    "states, wrong",
    [
        ([whole("one")], False),
        ([whole("one"), whole("two")], False),
        ([whole("two")], True),
        ([whole("one"), ("one", "two", "two", "two")], True),
        ([], True),
    ],
)
def test_an_unfinished_import_must_be_complete_or_absent(world, states, wrong):
    start(world, "import", content="two", blocks=BLOCKS)
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("operation", ["create", "remove"])
def test_an_unfinished_create_or_remove_may_leave_no_volume(operation):
    world = World()
    if operation == "remove":
        done(world, "create", 1, blocks=BLOCKS)
    start(world, operation, blocks=BLOCKS)
    assert not violations(world)


def test_a_removed_volume_that_reappears_is_detected(world):
    done(world, "remove", 0)
    assert violations(world, whole("one"))


def test_a_recreated_volume_with_old_content_is_detected(world):
    done(world, "remove", 0)
    done(world, "create", 1, blocks=BLOCKS)
    assert violations(world, whole("one"))


def test_an_unknown_volume_is_detected():
    assert violations(World(), ZEROES)


@pytest.fixture
def ambiguous(world):
    """Return a world in which a revert restored "one" or "two".

    By their number, the states after the imports may be one, two, three or
    two, two, three.
    """
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "import", 3, content="three", blocks=BLOCKS)
    done(world, "revert", 4, index=0)
    done(world, "create", 1, "b/private", blocks=BLOCKS)
    return world


def read(world, name, vid):
    runs = tags.packed(list(whole(name)))
    report = {"vid": vid, "of": vid, "content": runs, "blocks": BLOCKS}
    world.read(report)
    return world.violations


@pytest.mark.parametrize(
    "name, wrong", [("one", False), ("two", False), ("three", True)]
)
def test_a_clone_of_an_ambiguous_state_may_have_either_content(
    ambiguous, name, wrong
):
    done(ambiguous, "clone", 1, "b/private", of=VID)
    assert bool(read(ambiguous, name, "b/private")) == wrong


def test_reading_resolves_an_ambiguous_state(ambiguous):
    assert not read(ambiguous, "two", VID)
    done(ambiguous, "clone", 1, "b/private", of=VID)
    assert read(ambiguous, "one", "b/private")


def test_a_revert_keeps_the_states_before_it(world):
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "revert", 3, index=0)
    states = whole("one"), whole("two"), whole("one")
    assert not violations(world, *states)


def test_a_revert_that_loses_a_state_is_detected(world):
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "revert", 2, index=0)
    assert world.violations


def test_pruned_revisions_are_accepted(world):
    for number in range(2, KEEP + 3):
        name = f"number {number}"
        states = min(number, KEEP + 1)
        done(world, "import", states, content=name, blocks=BLOCKS)
    assert not world.violations
    names = [f"number {number}" for number in range(2, KEEP + 3)]
    assert not violations(world, *map(whole, names[-KEEP - 1 :]))


def test_a_clone_has_the_committed_state_of_its_source(world):
    done(world, "create", 1, "b/private", blocks=BLOCKS)
    done(world, "clone", 1, "b/private", of=VID)
    done(world, "remove", 0)
    assert not violations(world, whole("one"), vid="b/private")


@pytest.mark.parametrize("content, wrong", [("one", False), ("two", True)])
def test_content_that_a_guest_reads_is_checked(world, content, wrong):
    runs = tags.packed([content] * BLOCKS)
    report = {"vid": VID, "of": VID, "content": runs, "blocks": BLOCKS}
    world.read(report)
    assert bool(world.violations) == wrong


def test_a_volatile_volume_must_read_as_zeroes():
    world = World()
    content = tags.packed([tags.ZERO, "junk"])
    world.read({"vid": "a/volatile", "content": content, "blocks": 2})
    assert world.violations


def test_tags_identify_blocks():
    data = tags.extent("x", 0, 2) + bytes(tags.BLOCK) + tags.block("y", 3)
    assert tags.names(data) == ["x", "x", tags.ZERO, "y"]
    torn = data[:2048] + bytes(2048)
    assert tags.names(torn)[0].startswith("torn")
    misplaced = tags.block("x", 7)
    assert tags.names(misplaced)[0].startswith("torn")
    assert tags.unpacked(tags.packed(["x", "x", "y"])) == ("x", "x", "y")
