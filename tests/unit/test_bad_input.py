# SPDX-License-Identifier: BSD-2-Clause
"""Arbitrary input from qubes.xml and from clients, before it reaches ZFS."""

import errno
import re
import types

import pytest
import qubes.storage
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qubes.exc import QubesValueError

from qubes_storage_zfs.driver.errors import refusal
from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.store import options
from qubes_storage_zfs.store.options import BadOption
from qubes_storage_zfs.zfs import channel, lzc
from qubes_storage_zfs.zfs.errors import ZfsError

#: includes characters special to Python, XML or ZFS, and lone surrogates
TEXT = st.one_of(
    st.text(max_size=30),
    st.text("aA0/@#%.:-_ \n\0\x1b\u202e\udc80\u0660", max_size=30),
    st.integers().map(str),
    st.sampled_from(["-1", "+1", "1e3", "0x10", "nan", "inf", "True", "None"]),
    st.sampled_from(["%s", "%(x)s", "..", "a/..", "9" * 5000, "x" * 70000]),
)
ANYTHING = st.one_of(
    TEXT,
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.binary(max_size=9),
    st.lists(st.integers(), max_size=2),
)
OPTIONS = [
    "container",
    "block_devices",
    "revisions_to_keep",
    "ephemeral_volatile",
    "volblocksize",
    "compression",
    "snap_on_start_forensics",
]
#: no deadline, because the host may be busy
PATIENT = settings(deadline=None)
VM = types.SimpleNamespace(name="work", app=None)
#: repeated here, so that lzc.py is not checked against itself
COMPONENT = r"(?!\.\.?(/|@|$))[A-Za-z0-9_.:-]+"
NAME = re.compile(
    rf"(?=.{{1,255}}\Z)[A-Za-z][A-Za-z0-9_.-]*(/{COMPONENT})*(@{COMPONENT})?"
)
FLAGS = ("rw", "save_on_stop", "snap_on_start")


def check_sentence(text):
    """Check that *text* is one line that qubesd's client can format."""
    assert len(text) >= 20
    assert text.isprintable() and text.encode()
    assert text % () == text.replace("%%", "%")


@PATIENT
@given(TEXT, TEXT)
def test_every_refusal_is_one_line_that_can_be_formatted(subject, reason):
    check_sentence(str(refusal(f"Cannot do this to {subject}", reason)))


@PATIENT
@given(st.sampled_from(sorted(options.PARSERS)), ANYTHING)
def test_any_option_is_parsed_or_refused(name, value):
    try:
        options.PARSERS[name](value)
    except BadOption as exc:
        check_sentence(str(refusal("Cannot add the pool x", str(exc))))


@PATIENT
@given(st.dictionaries(st.sampled_from(OPTIONS), TEXT))
def test_a_pool_with_any_options_can_be_created(texts_of_options):
    """qubesd creates the object at its start; an exception would end qubesd."""
    pool = ZfsZvolPool(name="x", **texts_of_options)
    texts = {key: str(value) for key, value in pool.config.items()}
    assert texts.pop("driver") == "zfs_zvol"
    reloaded = ZfsZvolPool(**texts)
    assert {key: str(val) for key, val in reloaded.config.items()} == {
        **texts,
        "driver": "zfs_zvol",
    }
    assert (
        repr(pool) and pool.included_in(types.SimpleNamespace(pools={})) is None
    )


@PATIENT
@given(ANYTHING)
def test_revisions_to_keep_of_a_pool_is_validated(value):
    pool = ZfsZvolPool(name="x", container="tank/x")
    try:
        pool.revisions_to_keep = value
    except QubesValueError as exc:
        check_sentence(str(exc))
        assert pool.revisions_to_keep == options.DEFAULT_REVISIONS
    else:
        assert -1 <= pool.revisions_to_keep == int(value)


def make_volume(**config):
    pool = ZfsZvolPool(name="x", container="tank/x")
    volume = pool.init_volume(
        VM,
        {"name": "private", "pool": "x", "save_on_stop": True, **config},
    )
    return volume, pool


@PATIENT
@given(ANYTHING)
def test_revisions_to_keep_of_a_volume_is_validated(value):
    """A channel program takes the number when the qube stops."""
    volume, _ = make_volume(revisions_to_keep=1)
    try:
        volume.revisions_to_keep = value
    except QubesValueError as exc:
        check_sentence(str(exc))
        assert volume.revisions_to_keep == 1
    else:
        assert -1 <= volume.revisions_to_keep == int(value) < 1 << 63


@PATIENT
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "vid": TEXT,
            "size": TEXT,
            "revisions_to_keep": TEXT,
            "snap_on_start_forensics": TEXT,
            "of_a_newer_driver": TEXT,
            "ephemeral": st.booleans(),
            "rw": st.booleans(),
        },
    )
)
def test_any_volume_in_qubes_xml_can_be_loaded(config):
    """qubesd creates the object at its start; an exception would end qubesd."""
    volume, pool = make_volume(**config)
    assert -1 <= volume.revisions_to_keep < 1 << 63
    texts = {key: str(value) for key, value in volume.config.items()}
    flags = {key: getattr(volume, key) for key in FLAGS}
    reloaded = pool.init_volume(VM, {**texts, **flags})
    assert {key: str(val) for key, val in reloaded.config.items()} == texts
    assert reloaded == volume and hash(reloaded) == hash(volume)
    assert volume.is_running() is False


@pytest.mark.parametrize("name", ["", "Root", "a/b", "a.1", "%s", "\0"])
def test_a_volume_of_any_name_can_be_loaded(name):
    volume, _ = make_volume(name=name)
    assert volume.vid == f"work/{name}"
    assert isinstance(volume, qubes.storage.Volume)


@PATIENT
@given(TEXT)
def test_no_invalid_name_reaches_zfs(name):
    """qubesd lists the volumes of a pool in qubes.xml without setup()."""
    assume(not NAME.fullmatch(name))
    with pytest.raises(ZfsError) as caught:
        channel.ask("space", name, {})
    assert caught.value.code == errno.EINVAL
    pool = ZfsZvolPool(name="x", container=name)
    assert pool.list_volumes() == [] and pool.size is None


def test_the_longest_valid_names_reach_zfs(monkeypatch):
    monkeypatch.setattr(lzc, "library", lambda: 1 / 0)
    for name in "tank/" + "x" * 250, "t/a.b/x:y-z_0@r1":
        with pytest.raises(ZeroDivisionError):
            channel.ask("space", name, {})
