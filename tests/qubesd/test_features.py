# SPDX-License-Identifier: BSD-2-Clause
"""qvm-features and qvm-tags, with the package's extension in qubesd."""

import pytest

from .dom0 import disk, read, until, write, zfs


@pytest.fixture(scope="module")
def qube(dom0, plain):
    dom0.run("qvm-create", "-P", plain, "-l", "red", "-t", "tmpl", "marked")
    yield "marked"
    dom0.run("qvm-remove", "-f", "marked")


def test_a_feature_is_set_and_unset(dom0, qube):
    dom0.run("qvm-features", qube, "some.feature", "1")
    assert dom0.run("qvm-features", qube, "some.feature") == "1\n"
    dom0.run("qvm-start", qube)
    dom0.run("qvm-features", qube, "some.feature", "2")
    dom0.run("qvm-kill", qube)
    dom0.run("qvm-features", "--unset", qube, "some.feature")
    assert "some.feature" not in dom0.run("qvm-features", qube)


def test_a_tag_is_added_and_deleted(dom0, qube):
    dom0.run("qvm-tags", qube, "add", "mine")
    assert "mine" in dom0.run("qvm-tags", qube, "list").split()
    dom0.run("qvm-tags", qube, "del", "mine")
    assert "mine" not in dom0.run("qvm-tags", qube, "list").split()


# --- features of volumes


def compression(qube):
    volume = disk(qube, "xvdb").removeprefix("/dev/zvol/")
    (value,) = zfs("zfs", "get", "-H", "-o", "value", "compression", volume)
    return value


def test_a_feature_tunes_a_volume_at_the_next_start(dom0, qube):
    dom0.run("qvm-start", qube)
    before = compression(qube)
    dom0.run("qvm-features", qube, "zfs.compression", "off")
    assert compression(qube) == before != "off"
    dom0.shutdown(qube)
    dom0.run("qvm-start", qube)
    assert compression(qube) == "off"
    dom0.shutdown(qube)
    dom0.run("qvm-features", "--unset", qube, "zfs.compression")
    dom0.run("qvm-start", qube)
    assert compression(qube) == before
    dom0.shutdown(qube)


@pytest.mark.parametrize(
    "feature, value, why",
    [
        ("zfs.mountpoint", "/", "there is no feature"),
        ("zfs.private.compression", "fast", "compression must be on, off"),
        ("zfs.dedup", "on-for-ever", "dedup is an option of the pool"),
        ("zfs.reset-on-start", "root", "is reset at each start anyway"),
    ],
)
def test_a_bad_feature_is_refused(dom0, qube, feature, value, why):
    text = dom0.run("qvm-features", qube, feature, value, status=1)
    assert f"Cannot set the feature {feature} of {qube}: " in text
    assert why in text
    assert feature not in dom0.run("qvm-features", qube)


def test_a_volume_is_blank_at_each_start(dom0, qube):
    dom0.run("qvm-features", qube, "zfs.reset-on-start", "private")
    for session in b"one", b"two":
        dom0.run("qvm-start", qube)
        assert not any(read(qube, "xvdb", 4096))
        write(qube, "xvdb", session.ljust(512, b"\0"))
        dom0.shutdown(qube)
    dom0.run("qvm-features", "--unset", qube, "zfs.reset-on-start")
    dom0.run("qvm-start", qube)
    assert read(qube, "xvdb", 3) == b"two"
    volume = f"{qube}:private"
    listed = dom0.revisions(volume)
    dom0.shutdown(qube)
    # the session wrote nothing; until the stop ends, a possible revision is
    # listed
    dom0.lists(volume, listed)
    dom0.run("qvm-volume", "revert", volume)
    dom0.run("qvm-start", qube)
    assert read(qube, "xvdb", 3) == b"one"
    dom0.shutdown(qube)


# --- tags of pools


def pool_tags(dom0, qube):
    tags = dom0.run("qvm-tags", qube, "list").split()
    return [tag for tag in tags if tag.startswith("zfs-pool-")]


def test_tags_follow_the_pools_of_a_qube(dom0, qube):
    option = "container=tank/beside"
    dom0.run("qvm-pool", "add", "-o", option, "beside", "zfs_zvol")
    assert pool_tags(dom0, qube) == ["zfs-pool-plain"]
    dom0.run("qvm-tags", qube, "add", "zfs-pool-beside")
    dom0.run("qvm-tags", qube, "del", "zfs-pool-plain")
    assert pool_tags(dom0, qube) == ["zfs-pool-plain"]
    dom0.run("qvm-clone", "-P", "beside", qube, "copy")
    assert pool_tags(dom0, "copy") == ["zfs-pool-beside"]
    dom0.stop()
    dom0.start()
    assert pool_tags(dom0, qube) == ["zfs-pool-plain"]
    assert pool_tags(dom0, "copy") == ["zfs-pool-beside"]
    dom0.run("qvm-remove", "-f", "copy")
    until(
        lambda: not zfs(
            "zfs", "list", "-Hro", "name", "-t", "volume", "tank/beside"
        ),
        "the volumes of the copy are gone",
    )
    dom0.run("qvm-pool", "remove", "beside")
