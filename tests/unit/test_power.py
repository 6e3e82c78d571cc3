# SPDX-License-Identifier: BSD-2-Clause
"""The judge of the power cuts finds what it is there to find."""

import pytest

from tests.power import tags
from tests.power.model import KEEP, World

VID = "a/private"
BLOCKS = 4
ZEROES = (tags.ZERO,) * BLOCKS


def of(name):
    return (name,) * BLOCKS


@pytest.fixture
def world():
    """One volume with the content "one", halted."""
    world = World()
    done(world, "create", 1, blocks=BLOCKS)
    done(world, "import", 1, content="one", blocks=BLOCKS)
    return world


def begin(world, verb, vid=VID, **what):
    world.start({"vid": vid, "operation": verb, **what})


def done(world, verb, states, vid=VID, **what):
    begin(world, verb, vid, **what)
    world.finish({"vid": vid, "states": states})


def write(world, content, extents, end=True):
    begin(world, "write", content=content, extents=extents)
    if end:
        world.finish({"vid": VID, "states": 1})


def violations(world, *states, vid=VID):
    world.judge({vid: list(states)} if states else {})
    return world.violations


def test_what_was_committed_is_there(world):
    assert not violations(world, of("one"))


def test_what_was_committed_is_lost(world):
    assert violations(world)


@pytest.mark.parametrize("found", ["two", tags.ZERO])
def test_what_was_committed_is_other(world, found):
    assert violations(world, of(found))


@pytest.mark.parametrize("found", ["one", "two"])
def test_unsynced_block_is_old_or_new(world, found):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert not violations(world, of("one"), ("one", found, "one", "one"))


def test_unsynced_block_is_neither(world):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert violations(world, of("one"), ("one", "three", "one", "one"))


def test_write_in_flight_is_old_or_new(world):
    done(world, "start", 1)
    write(world, "two", [(0, 4)], end=False)
    assert not violations(world, of("one"), ("two", "one", "two", "one"))


@pytest.mark.parametrize("found, wrong", [("one", True), ("two", False)])
def test_synced_block_is_new(world, found, wrong):
    done(world, "start", 1)
    write(world, "two", [(1, 1)])
    done(world, "sync", 1)
    states = of("one"), ("one", found, "one", "one")
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("states", [["one"], ["one", "two"]])
def test_what_was_written_is_committed_by_the_recovery(world, states):
    done(world, "start", 1)
    write(world, "two", [[0, BLOCKS]])
    done(world, "sync", 1)
    assert bool(violations(world, *map(of, states))) == (states == ["one"])


@pytest.mark.parametrize("states", [1, 2])
def test_session_without_a_write_is_no_revision(world, states):
    done(world, "start", 1)
    assert bool(violations(world, *[of("one")] * states)) == (states == 2)


@pytest.mark.parametrize(
    "states, wrong",
    [
        ([of("one")], False),
        ([of("one"), of("two")], False),
        ([of("two")], True),
        ([of("one"), ("one", "two", "two", "two")], True),
        ([], True),
    ],
)
def test_import_in_flight_is_before_or_after(world, states, wrong):
    begin(world, "import", content="two", blocks=BLOCKS)
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("verb", ["create", "remove"])
def test_only_these_verbs_leave_no_volume(verb):
    world = World()
    if verb == "remove":
        done(world, "create", 1, blocks=BLOCKS)
    begin(world, verb, blocks=BLOCKS)
    assert not violations(world)


def test_removed_stays_removed(world):
    done(world, "remove", 0)
    assert violations(world, of("one"))


def test_recreated_volume_shows_nothing_of_the_old_one(world):
    done(world, "remove", 0)
    done(world, "create", 1, blocks=BLOCKS)
    assert violations(world, of("one"))


def test_a_volume_that_nobody_made():
    assert violations(World(), ZEROES)


@pytest.fixture
def ambiguous(world):
    """It is "one" or "two": by their number the states after the second
    import may be one, two, three or two, two, three."""
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "import", 3, content="three", blocks=BLOCKS)
    done(world, "revert", 4, index=0)
    done(world, "create", 1, "b/private", blocks=BLOCKS)
    return world


def read(world, name, vid):
    runs = tags.packed(list(of(name)))
    report = {"vid": vid, "of": vid, "content": runs, "blocks": BLOCKS}
    world.read(report)
    return world.violations


@pytest.mark.parametrize(
    "name, wrong", [("one", False), ("two", False), ("three", True)]
)
def test_clone_of_what_is_one_of_two(ambiguous, name, wrong):
    done(ambiguous, "clone", 1, "b/private", of=VID)
    assert bool(read(ambiguous, name, "b/private")) == wrong


def test_what_was_read_rules_out_the_other(ambiguous):
    assert not read(ambiguous, "two", VID)
    done(ambiguous, "clone", 1, "b/private", of=VID)
    assert read(ambiguous, "one", "b/private")


def test_revert_and_what_it_leaves(world):
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "revert", 3, index=0)
    states = of("one"), of("two"), of("one")
    assert not violations(world, *states)


def test_revert_that_loses_the_state_before(world):
    done(world, "import", 2, content="two", blocks=BLOCKS)
    done(world, "revert", 2, index=0)
    assert world.violations


def test_old_revisions_are_pruned(world):
    for number in range(2, KEEP + 3):
        name = f"number {number}"
        states = min(number, KEEP + 1)
        done(world, "import", states, content=name, blocks=BLOCKS)
    assert not world.violations
    names = [f"number {number}" for number in range(2, KEEP + 3)]
    assert not violations(world, *map(of, names[-KEEP - 1 :]))


def test_clone_has_the_committed_state_of_its_source(world):
    done(world, "create", 1, "b/private", blocks=BLOCKS)
    done(world, "clone", 1, "b/private", of=VID)
    done(world, "remove", 0)
    assert not violations(world, of("one"), vid="b/private")


@pytest.mark.parametrize("found, wrong", [("one", False), ("two", True)])
def test_what_a_guest_reads(world, found, wrong):
    content = tags.packed([found] * BLOCKS)
    report = {"vid": VID, "of": VID, "content": content, "blocks": BLOCKS}
    world.read(report)
    assert bool(world.violations) == wrong


def test_volatile_volume_is_zeroes():
    world = World()
    content = tags.packed([tags.ZERO, "junk"])
    world.read({"vid": "a/volatile", "content": content, "blocks": 2})
    assert world.violations


def test_tags():
    data = tags.extent("x", 0, 2) + bytes(tags.BLOCK) + tags.block("y", 3)
    assert tags.names(data) == ["x", "x", tags.ZERO, "y"]
    torn = data[:2048] + bytes(2048)
    assert tags.names(torn)[0].startswith("torn")
    misplaced = tags.block("x", 7)
    assert tags.names(misplaced)[0].startswith("torn")
    assert tags.unpacked(tags.packed(["x", "x", "y"])) == ("x", "x", "y")
