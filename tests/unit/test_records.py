# SPDX-License-Identifier: BSD-2-Clause
"""Records of migrated pools: each type parses the text that it writes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_storage_zfs.migrate.errors import NotARecord
from qubes_storage_zfs.migrate.pools import Origin
from qubes_storage_zfs.migrate.records import (
    LAYOUTS,
    SETTINGS,
    DiskRecord,
    Dom0Record,
    QubeRecord,
    VolumeRecord,
)

#: no deadline, because the host may be busy
PATIENT = settings(deadline=None)

layouts = st.sampled_from(LAYOUTS)
before = st.fixed_dictionaries(
    {}, optional={k: st.sampled_from(v) for k, v in SETTINGS.items()}
)
volumes = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,9}", fullmatch=True)
attributes = st.dictionaries(
    volumes,
    st.dictionaries(
        st.sampled_from(["save_on_stop", "snap_on_start"]),
        st.sampled_from(["True", "False"]),
    ),
)
disk_records = st.builds(
    lambda layout, values: DiskRecord(*layout, values), layouts, before
)
volume_records = st.builds(
    VolumeRecord,
    st.integers(0, 10**9 - 1),
    st.integers(0, 2**63 - 1),
    st.booleans(),
)
dom0_records = st.builds(
    lambda layout, **fields: Dom0Record(
        origin=layout[0], inside=layout[1], **fields
    ),
    layouts,
    pool=st.text(),
    container=st.text(),
    zpool_guid=st.none() | st.integers(0, 2**64 - 1).map(str),
    guid_is_new=st.booleans(),
    dropped=st.dictionaries(st.text(), attributes),
    settings=st.none() | before,
)


@PATIENT
@given(
    st.one_of(
        disk_records,
        volume_records,
        dom0_records,
        attributes.map(QubeRecord),
    )
)
def test_every_record_survives_a_round_trip(record):
    text = str(record)
    assert text.isascii()
    assert type(record).parse(text) == record


@PATIENT
@given(
    st.sampled_from([DiskRecord, QubeRecord, VolumeRecord, Dom0Record]),
    st.text()
    | st.sampled_from(["scratch", "1 2 rw", "{}", "[]", "null", "[" * 9999])
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), st.lists
    ).map(json.dumps),
)
def test_any_text_is_parsed_or_refused(kind, text):
    try:
        record = kind.parse(text)
    except NotARecord:
        return
    assert record is None or kind.parse(str(record)) == record


def test_records_of_earlier_releases_are_read():
    text = '{"was": "older", "old": "vm", "set": {"mountpoint": null}}'
    record = DiskRecord.parse(text)
    assert record == DiskRecord(Origin.OLDER, "vm", {"mountpoint": None})
    assert str(record) == text
    assert VolumeRecord.parse("scratch") is None
    assert VolumeRecord.parse("3 8192 ro") == VolumeRecord(3, 8192, True)
    text = (
        '{\n "version": 1,\n "pool": "p",\n "container": "tank/p",\n'
        ' "zpool_guid": "12",\n "was": "zfs",\n "old": "",\n "noted": true,\n'
        ' "dropped": {},\n "settings": null\n}'
    )
    record = Dom0Record.parse(text)
    assert record.guid_is_new and record.origin is Origin.UPSTREAM
    assert str(record) == text


def test_the_invalid_part_is_named():
    text = '{"was": "zfs", "old": "", "set": {"volmode": "full"}}'
    with pytest.raises(NotARecord) as caught:
        DiskRecord.parse(text)
    assert caught.value.part == "volmode=full"
