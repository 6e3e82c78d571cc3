# SPDX-License-Identifier: BSD-2-Clause
"""Names of datasets, volumes and revisions: formatted, parsed, refused."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_storage_zfs.store import messages, naming
from qubes_storage_zfs.store.naming import BadName, VolumeName

QUBE = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", fullmatch=True)
VOLUME = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)
#: the characters that ZFS allows in a component
ZFS_COMPONENT = set(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-"
)


@given(QUBE, VOLUME, st.integers(0, 10**17))
def test_generations_of_different_volumes_are_distinguished(
    qube, volume, number
):
    name = naming.volume_name("tank/q/vm", f"{qube}/{volume}")
    assert name == VolumeName("tank/q/vm", qube, volume)
    assert name.number_of(name.generation(number)) == number
    other = VolumeName("tank/q/vm", qube, volume + "x")
    assert other.number_of(name.generation(number)) is None


@pytest.mark.parametrize("tail", [".0", ".01", ".x", ".", "@r1", ".1.2", ".-1"])
def test_a_name_with_another_suffix_is_no_generation(tail):
    name = VolumeName("tank/vm", "work", "private")
    assert name.number_of("tank/vm/work/private" + tail) is None


@given(st.text(max_size=40))
def test_no_invalid_name_is_accepted(text):
    for parse in (
        lambda: naming.volume_name("tank/vm", text).generation(0),
        lambda: naming.dataset_name(text),
        lambda: naming.zpool_name(text),
    ):
        try:
            name = parse()
        except BadName as exc:
            assert str(exc)
            continue
        parts = name.split("/")
        assert all(part and set(part) <= ZFS_COMPONENT for part in parts)
        assert not {".", ".."} & set(parts)
        assert not name.startswith("-")
        assert len(name) <= naming.NAME_MAX


@given(QUBE, VOLUME, st.sampled_from("@#/.%: \n\0é,"), st.integers(0, 40))
def test_one_invalid_character_in_a_vid_is_refused(qube, volume, character, at):
    """Of these characters, the name of a qube may have only the dot."""
    vid = f"{qube}/{volume}"
    at = min(at, len(vid))
    if character == "." and 0 < at <= len(qube):
        return
    with pytest.raises(BadName):
        naming.volume_name("tank/vm", vid[:at] + character + vid[at:])


@given(st.text(max_size=30))
def test_no_invalid_revision_is_accepted(text):
    try:
        number = naming.revision_number(text)
    except BadName:
        return
    assert text == f"r{number}" and number > 0


@pytest.mark.parametrize(
    "name",
    [
        "mirror",
        "mirror-1",
        "raidz",
        "draid2",
        "spare",
        "c0",
        "c1t0",
        "log",
        "1pool",
        "-f",
        "a/b",
        "a b",
        "",
        "x" * 65,
        "pool%",
    ],
)
def test_reserved_and_invalid_zpool_names_are_refused(name):
    with pytest.raises(BadName):
        naming.zpool_name(name)


def test_names_that_only_zfs_allows_are_refused():
    """The message must not call a name invalid that ZFS allows."""
    for name, kind in (
        ("tank/my qubes", "dataset name 'my qubes'"),
        ("odd:pool/q", "zpool name 'odd:pool'"),
        ("my pool", "zpool name 'my pool'"),
    ):
        with pytest.raises(BadName, match=f"does not support the {kind}"):
            naming.dataset_name(name)
    with pytest.raises(BadName, match="does not support the zpool name"):
        naming.zpool_name("odd:pool")
    for name in "tank/a%b", "tank/a\nb", "tank/é", "tank//b", "1tank":
        with pytest.raises(BadName, match="not a valid name"):
            naming.dataset_name(name)


@pytest.mark.parametrize("name", ["tank", "my-pool", "p.1_2", "logs", "cold"])
def test_valid_zpool_names_are_accepted(name):
    assert naming.zpool_name(name) == name


def test_a_name_must_leave_room_for_revisions():
    naming.volume_name("tank/vm", "q" * 215 + "/private")
    with pytest.raises(BadName, match="too long"):
        naming.volume_name("tank/vm", "q" * 216 + "/private")


@pytest.mark.parametrize(
    "check, name, template",
    [
        (partial(naming.volume_name, "tank"), "a b/x", messages.BAD_VID),
        (partial(naming.volume_name, "t" * 240), "a/x", messages.LONG_VID),
        (naming.revision_number, "daily", messages.BAD_REVISION),
        (naming.dataset_name, "tank/a@b", messages.BAD_DATASET),
        (naming.dataset_name, "9tank/a", messages.BAD_ZPOOL),
        (naming.dataset_name, "t/" + "a" * 250, messages.LONG_NAME),
        (naming.zpool_name, "mirror", messages.RESERVED_ZPOOL),
        (naming.zpool_name, "t" * 65, messages.LONG_NAME),
    ],
)
def test_each_invalid_name_has_its_message(check, name, template):
    with pytest.raises(BadName) as caught:
        check(name)
    assert caught.value.template == template
    assert "{" not in str(caught.value)
