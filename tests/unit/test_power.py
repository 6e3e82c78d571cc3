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


def test_an_intact_committed_state_is_accepted(world):
    assert not violations(world, of("one"))


def test_a_lost_committed_state_is_detected(world):
    assert violations(world)


@pytest.mark.parametrize("found", ["two", tags.ZERO])
def test_a_changed_committed_state_is_detected(world, found):
    assert violations(world, of(found))


@pytest.mark.parametrize("found", ["one", "two"])
def test_an_unsynced_block_may_be_old_or_new(world, found):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert not violations(world, of("one"), ("one", found, "one", "one"))


def test_an_unsynced_block_with_other_content_is_detected(world):
    done(world, "start", 1)
    write(world, "two", [(1, 2)])
    assert violations(world, of("one"), ("one", "three", "one", "one"))


def test_a_block_of_an_unfinished_write_may_be_old_or_new(world):
    done(world, "start", 1)
    write(world, "two", [(0, 4)], end=False)
    assert not violations(world, of("one"), ("two", "one", "two", "one"))


@pytest.mark.parametrize("found, wrong", [("one", True), ("two", False)])
def test_a_synced_block_must_be_new(world, found, wrong):
    done(world, "start", 1)
    write(world, "two", [(1, 1)])
    done(world, "sync", 1)
    states = of("one"), ("one", found, "one", "one")
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("states", [["one"], ["one", "two"]])
def test_recovery_must_commit_synced_writes(world, states):
    done(world, "start", 1)
    write(world, "two", [[0, BLOCKS]])
    done(world, "sync", 1)
    assert bool(violations(world, *map(of, states))) == (states == ["one"])


@pytest.mark.parametrize("states", [1, 2])
def test_a_session_without_a_write_must_not_add_a_revision(world, states):
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
def test_an_unfinished_import_must_be_complete_or_absent(world, states, wrong):
    begin(world, "import", content="two", blocks=BLOCKS)
    assert bool(violations(world, *states)) == wrong


@pytest.mark.parametrize("verb", ["create", "remove"])
def test_an_unfinished_create_or_remove_may_leave_no_volume(verb):
    world = World()
    if verb == "remove":
        done(world, "create", 1, blocks=BLOCKS)
    begin(world, verb, blocks=BLOCKS)
    assert not violations(world)


def test_a_removed_volume_that_reappears_is_detected(world):
    done(world, "remove", 0)
    assert violations(world, of("one"))


def test_a_recreated_volume_with_old_content_is_detected(world):
    done(world, "remove", 0)
    done(world, "create", 1, blocks=BLOCKS)
    assert violations(world, of("one"))


def test_an_unknown_volume_is_detected():
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
    states = of("one"), of("two"), of("one")
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
    assert not violations(world, *map(of, names[-KEEP - 1 :]))


def test_a_clone_has_the_committed_state_of_its_source(world):
    done(world, "create", 1, "b/private", blocks=BLOCKS)
    done(world, "clone", 1, "b/private", of=VID)
    done(world, "remove", 0)
    assert not violations(world, of("one"), vid="b/private")


@pytest.mark.parametrize("found, wrong", [("one", False), ("two", True)])
def test_content_that_a_guest_reads_is_checked(world, found, wrong):
    content = tags.packed([found] * BLOCKS)
    report = {"vid": VID, "of": VID, "content": content, "blocks": BLOCKS}
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
