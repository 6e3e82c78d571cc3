# SPDX-License-Identifier: BSD-2-Clause
"""The table of properties that keep dom0 from parsing content of qubes."""

from pathlib import Path

import pytest

from qubes_storage_zfs.migrate import disk, records
from qubes_storage_zfs.store import policy
from qubes_storage_zfs.zfs import lzc

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_the_table():
    design = (ROOT / "doc/design.md").read_text().split()
    moving = (ROOT / "doc/moving-zpools.md").read_text().split()
    manual = (ROOT / "doc/manpages/qvm-zfs.rst").read_text()
    for item in policy.SAFETY:
        if item.name == "mountpoint":
            assert "-m none" in " ".join(moving)
            continue
        assert f"{item.name}={item.value}" in design
        assert f"{item.name}={item.value}" in moving
        if item.is_required and ":" not in item.name:
            assert f"``{item.name}``" in manual


def test_every_value_has_the_type_that_libzfs_core_expects():
    """All native properties but mountpoint are numbers to ZFS."""
    settings = {**policy.ZPOOL_ROOT_SETTINGS, "atime": 0}
    encoded = lzc._properties(settings)
    assert encoded.pop(b"mountpoint") == b"none"
    for name, value in encoded.items():
        kind = bytes if b":" in name else int
        assert type(value) is kind, name


def test_migration_and_undo_use_the_same_table():
    names = {item.name for item in policy.SAFETY}
    assert set(disk.SETTINGS) == set(records.SETTINGS) == names
    assert set(disk.ZVOL_SETTINGS) - {"readonly"} == set(policy.SAFE)
    for values in records.SETTINGS.values():
        assert None in values


@pytest.mark.parametrize("item", policy.SAFETY, ids=lambda item: item.name)
def test_undo_restores_no_unsafe_value(item):
    dangerous = {"full", "geom", "visible", "/mnt", "on"}
    assert not dangerous & set(item.restorable)
    assert item.value in item.restorable
