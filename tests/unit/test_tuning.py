# SPDX-License-Identifier: BSD-2-Clause
"""Features of qubes that tune their volumes."""

import types

import pytest

from qubes_storage_zfs.driver import features
from qubes_storage_zfs.store.options import BadOption


def volume(save_on_stop):
    return types.SimpleNamespace(save_on_stop=save_on_stop)


VOLUMES = {
    "root": volume(False),
    "private": volume(True),
    "volatile": volume(False),
}


def qube(klass="AppVM", template=None, **settings):
    values = {name.replace("_", "."): value for name, value in settings.items()}
    return types.SimpleNamespace(
        name="work", klass=klass, template=template, features=values
    )


GOOD = {
    "zfs.compression": ["off", "lz4", "zstd-3"],
    "zfs.private.compression": ["off"],
    "zfs.sync": ["standard", "always", "disabled"],
    "zfs.primarycache": ["all", "metadata", "none"],
    "zfs.copies": ["1", "2", "3"],
    "zfs.root.volblocksize": ["4k", "131072"],
    "zfs.reset-on-start": ["private", "private=r3"],
}
BAD = {
    "zfs.compression": ["", "fast", "off\n", "lz4 ", "zstd-20"],
    "zfs.private.compression": ["1"],
    "zfs.other.compression": ["off"],
    "zfs.sync": ["", "none", "1"],
    "zfs.primarycache": ["some"],
    "zfs.copies": ["0", "4", ""],
    "zfs.dedup": ["on", "off", "on-for-ever", ""],
    "zfs.private.dedup": ["on-for-ever"],
    "zfs.volblocksize": ["512", "3k", "1m", ""],
    "zfs.encryption": ["off"],
    "zfs.mountpoint": ["/"],
    "zfs.volmode": ["full"],
    "zfs.private.snapdev": ["visible"],
    "zfs.org.qubes-os:part-of-qvm-pool": ["false"],
    "zfs.": ["off"],
    "zfs..compression": ["off"],
    "zfs.Compression": ["off"],
    "zfs.reset-on-start": [
        *("", " ", "=", "private=", "private=3", "private=r0", "private=r3x"),
        *("private private", "private,root", "other", "volatile", "root"),
        "private=r" + "9" * 40,
    ],
    "zfs.private.reset-on-start": ["private"],
}


def cases(table):
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize("feature, value", cases(GOOD))
def test_a_valid_feature_is_accepted(feature, value):
    features.check(feature, value, VOLUMES)
    features.check(feature, value, None)


@pytest.mark.parametrize("feature, value", cases(BAD))
def test_an_invalid_feature_is_refused(feature, value):
    with pytest.raises(BadOption):
        features.check(feature, value, VOLUMES)


def test_dedup_is_an_option_of_the_pool(caplog):
    with pytest.raises(BadOption, match="qvm-pool add -o dedup=on-for-ever"):
        features.check("zfs.dedup", "on", VOLUMES)
    # a qube that has the feature of an earlier release
    for feature in "zfs_dedup", "zfs_root_dedup":
        caplog.clear()
        old = qube(**{feature: "on-for-ever", "zfs_sync": "always"})
        assert features.zfs_properties(old, "root") == {"sync": "always"}
        assert "the feature zfs.dedup is ignored" in caplog.text


def test_a_feature_of_a_volume_overrides_that_of_its_qube():
    mine = qube(zfs_compression="off", zfs_private_compression="zstd")
    assert features.zfs_properties(mine, "private") == {"compression": "zstd"}
    assert features.zfs_properties(mine, "root") == {"compression": "off"}
    assert features.zfs_properties(mine, "volatile") == {"compression": "off"}


def test_only_disposables_inherit_features_of_their_template():
    base = qube(zfs_compression="off", zfs_sync="always")
    disposable = qube("DispVM", base, zfs_sync="disabled")
    assert features.zfs_properties(disposable, "private") == {
        "compression": "off",
        "sync": "disabled",
    }
    assert features.zfs_properties(qube("AppVM", base), "private") == {}
    assert features.zfs_properties(None, "private") == {}


def test_an_invalid_stored_feature_is_ignored():
    assert (
        features.zfs_properties(qube(zfs_compression="x; rm"), "private") == {}
    )
    assert features.reset_to(qube(**{"zfs_reset-on-start": "x=y"}), "x") is None


def test_reset_on_start_names_the_content_of_a_volume():
    mine = qube(**{"zfs_reset-on-start": "private=r3 root"})
    assert features.reset_to(mine, "private") == "r3"
    assert features.reset_to(mine, "root") == features.BLANK
    assert features.reset_to(mine, "volatile") is None
    assert features.reset_to(None, "private") is None
