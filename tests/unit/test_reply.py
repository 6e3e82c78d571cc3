# SPDX-License-Identifier: BSD-2-Clause
"""The reply of a channel program is read with types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_storage_zfs.store.state import Revision, Violation, VolumeState
from qubes_storage_zfs.zfs.reply import BadReply, Reply

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(
        st.sampled_from(
            ["1", "2", "number", "snapshot", "wrong", "revisions", "current"]
            + ["dataset", "property", "required", "numbers", "properties"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)


def test_an_empty_reply_has_no_values():
    reply = Reply()
    assert reply.is_none() and not reply.as_flag() and reply.table() == {}
    assert reply.items() == [] and reply.at("any").is_none()
    assert reply.text("any") is None and reply.number("any") is None
    assert not reply.flag("any") and reply.flag("any", default=True)


def test_a_list_keeps_its_order():
    reply = Reply({str(number): number for number in (10, 2, 1)})
    assert reply.numbers() == [1, 2, 10]


def test_a_boolean_is_not_a_number():
    with pytest.raises(BadReply):
        Reply(True).as_number()


@given(VALUES)
def test_any_value_is_read_or_refused(value):
    """Parsing raises only BadReply, which counts as a failure of ZFS."""
    for read in (
        VolumeState.from_reply,
        Revision.from_reply,
        Violation.from_reply,
        Reply.texts,
        Reply.text_by_name,
        Reply.number_by_name,
    ):
        try:
            read(Reply(value))
        except BadReply:
            pass
