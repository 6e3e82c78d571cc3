# SPDX-License-Identifier: BSD-2-Clause
"""Pointers and specifications of volumes: parse and format."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qubes_storage_zfs.store.pointer import BadPointer, Pointer, VolumeSpec

NUMBERS = st.integers(min_value=0, max_value=10**18 - 1)
SPECS = st.builds(VolumeSpec, NUMBERS, st.none() | NUMBERS)
SOURCES = st.just("blank") | NUMBERS.map("r{}".format)
POINTERS = (
    st.builds(Pointer, NUMBERS)
    | st.builds(Pointer, NUMBERS, st.just(True), st.none() | SPECS)
    | st.builds(
        Pointer,
        NUMBERS,
        copied_from=SOURCES,
        copy=st.none() | NUMBERS,
    )
)
#: texts that are almost pointers
ALMOST = st.lists(
    st.sampled_from(
        ["0", "5", " ", "scratch", "from", "r3", "blank", "/", "-1", "\n", "٣"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize(
    "text, pointer",
    [
        ("0", Pointer(0)),
        ("5 from r3 r8", Pointer(5, copied_from="r3", copy=8)),
        ("5 from blank r1", Pointer(5, copied_from="blank", copy=1)),
        ("7 from r3", Pointer(7, copied_from="r3")),
        ("0 scratch", Pointer(0, True)),
        ("0 scratch 4194304", Pointer(0, True, VolumeSpec(4194304))),
        (
            "0 scratch 4194304/65536",
            Pointer(0, True, VolumeSpec(4194304, 65536)),
        ),
    ],
)
def test_each_form_is_parsed_and_formatted(text, pointer):
    assert Pointer.parse(text) == pointer
    assert str(pointer) == text


@given(POINTERS)
def test_pointer_round_trip(pointer):
    assert Pointer.parse(str(pointer)) == pointer


@given(SPECS)
def test_spec_round_trip(spec):
    assert VolumeSpec.parse(str(spec)) == spec


@given(st.text() | ALMOST)
@example("")
@example("5\n")
@example("٣")
@example("5 from ")
@example("5 scratch 1/")
@example("9" * 5000)
def test_any_text_is_parsed_or_refused(text):
    for kind in Pointer, VolumeSpec:
        try:
            value = kind.parse(text)
        except BadPointer:
            continue
        assert kind.parse(str(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", " 5", "5 ", "-1", "5 scratch x", "5 from r3 8", "5 from", "٣", "5\n"],
)
def test_an_invalid_pointer_is_refused(text):
    with pytest.raises(BadPointer):
        Pointer.parse(text)
