# SPDX-License-Identifier: BSD-2-Clause
"""Features of qubes that configure volumes, on real ZFS."""

import os
import types

import pytest
from qubes.exc import QubesValueError, StoragePoolException

from qubes_storage_zfs.driver import events
from qubes_storage_zfs.zfs import commands

from ..support.counting import cost, quiet, rest
from ..support.lab import Lab
from ..support.zpools import MIB, open_device, read, sh, write


class Qube:
    """A qube whose features a test sets, as qubesd does for a user."""

    klass = "AppVM"
    auto_cleanup = False

    def __init__(self, name="work"):
        self.name = name
        self.features = {}
        self.volumes = {}

    def set(self, feature, value):
        events.check_feature(self, feature, value)
        self.features[feature] = value

    def takes(self, *volumes):
        app = types.SimpleNamespace(domains={self.name: self})
        for volume in volumes:
            volume.app, volume.qube = app, self.name
            self.volumes[volume.name] = volume


@pytest.fixture
def qube():
    return Qube()


@pytest.fixture
def volumes(lab, qube):
    """Root, private and volatile."""
    template = lab.private("tmpl", b"v1", name="root")
    found = lab.clone_of(template, "work"), lab.private(), lab.volatile()
    qube.takes(*found)
    return found


def prop(volume, *names):
    out = sh(*("zfs", "get", "-Hpo", "value"), ",".join(names), volume.dataset)
    return out.split()


def local(volume):
    """Return the names of native properties that are set on the zvol itself."""
    out = sh("zfs", "get", "-Hpo", "property", "-s", "local", "all", volume)
    return {name for name in out.split() if ":" not in name}


# --- tuning


def test_start_sets_properties_and_resets_those_of_removed_features(
    lab, qube, volumes
):
    root, private, volatile = volumes
    lab.session(private, b"one")
    before = local(private.dataset)
    qube.set("zfs.compression", "off")
    qube.set("zfs.private.compression", "gzip-2")
    qube.set("zfs.private.sync", "always")
    qube.set("zfs.primarycache", "metadata")
    lab.start(*volumes)
    assert prop(private, "compression", "sync") == ["gzip-2", "always"]
    assert prop(root, "compression", "sync") == ["off", "standard"]
    assert prop(volatile, "compression", "primarycache") == ["off", "metadata"]
    lab.stop(*volumes)

    qube.set("zfs.private.sync", "standard")
    del qube.features["zfs.primarycache"]
    del qube.features["zfs.private.compression"]
    lab.restart()
    lab.start(*volumes)
    assert prop(private, "compression", "sync") == ["off", "standard"]
    assert prop(volatile, "primarycache") == ["all"]
    lab.stop(*volumes)

    qube.features.clear()
    lab.start(*volumes)
    assert local(private.dataset) == before
    assert prop(private, "qubes-storage-zfs:tuned") == ["-"]
    assert read(private.path) == b"one"
    lab.stop(*volumes)


def test_start_with_unchanged_features_makes_no_extra_calls(lab, qube, volumes):
    qube.set("zfs.compression", "off")
    for _ in range(2):
        lab.start(*volumes)
        lab.stop(*volumes)
    with quiet():
        rest(lab.pool.zpool)
        with cost(lab.pool.zpool) as spent:
            lab.start(*volumes)
    assert spent.txgs == 0 and spent.calls == ["state"] * 3
    lab.stop(*volumes)


def test_next_start_sets_properties_of_a_new_generation(lab, qube, volumes):
    private = volumes[1]
    qube.set("zfs.compression", "off")
    lab.session(private, b"one")
    lab.session(private, b"two")
    lab.run(private.revert())
    lab.start(private)
    assert prop(private, "compression") == ["off"]
    lab.stop(private)


def test_volblocksize_applies_only_to_new_generations(lab, qube, volumes):
    _, private, volatile = volumes
    lab.session(private, b"one")
    lab.session(volatile, b"x")
    qube.set("zfs.volblocksize", "4k")
    lab.start(private, volatile)
    assert prop(private, "volblocksize") == ["16384"]
    assert prop(volatile, "volblocksize") == ["4096"]
    lab.stop(private, volatile)
    # a size is still rounded up to the block size of the generation
    lab.run(private.resize(5 * MIB + 4096))
    assert private.size == 5 * MIB + 16384
    lab.replace(private, b"two", MIB + 4096)
    assert prop(private, "volblocksize") == ["4096"]
    assert private.size == MIB + 4096

    # and back
    del qube.features["zfs.volblocksize"]
    lab.start(private, volatile)
    assert prop(volatile, "volblocksize") == ["16384"]
    assert read(private.path) == b"two"
    lab.stop(private, volatile)


def test_volatile_volume_with_another_block_size_is_still_prepared(
    lab, qube, volumes
):
    volatile = volumes[2]
    qube.set("zfs.volatile.volblocksize", "8k")
    lab.session(volatile, b"x")
    guid = prop(volatile, "guid")
    lab.start(volatile)
    assert prop(volatile, "guid") == guid and read(volatile.path) == b""
    lab.stop(volatile)


def test_start_fails_if_a_property_cannot_be_set(
    lab, qube, volumes, monkeypatch
):
    """A user may rely on compression=off."""
    private = volumes[1]
    qube.set("zfs.compression", "off")

    async def refuse(*_args):
        raise commands.CommandFailed("zfs set", 1, "cannot set it")

    with monkeypatch.context() as patch:
        patch.setattr(commands, "set_properties", refuse)
        with pytest.raises(StoragePoolException, match="cannot set it"):
            lab.run(private.start())
    lab.start(private)
    assert prop(private, "compression") == ["off"]
    lab.stop(private)


def test_next_start_completes_a_killed_reset_of_properties(
    lab, qube, volumes, monkeypatch
):
    """The next start resets all properties, even after the kill."""
    private = volumes[1]
    qube.set("zfs.copies", "2")
    qube.set("zfs.compression", "off")
    lab.session(private, b"one")
    qube.features.clear()

    inherit, calls = commands.inherit, []

    async def killed(dataset, name):
        if calls:
            raise KeyboardInterrupt
        calls.append(name)
        await inherit(dataset, name)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "inherit", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.run(private.start())
    lab.restart()
    lab.start(private)
    assert prop(private, "copies", "qubes-storage-zfs:tuned") == ["1", "-"]
    assert not {"copies", "compression"} & local(private.dataset)
    lab.stop(private)


def test_dedup_is_an_option_of_the_pool_and_no_feature(
    lab, qube, volumes, zpool
):
    private = volumes[1]
    with pytest.raises(QubesValueError, match="-o dedup=on-for-ever"):
        qube.set("zfs.dedup", "on-for-ever")
    # a qube may have the feature from a version that supported it
    qube.features["zfs.dedup"] = "on-for-ever"
    mark = "qubes-storage-zfs:tuned=dedup=on"
    sh("zfs", "set", "dedup=on", mark, private.dataset)
    lab.session(private, b"one")
    assert "dedup" not in local(private.dataset)
    assert prop(private, "dedup", "qubes-storage-zfs:tuned") == ["off", "-"]
    qube.features.clear()

    other = Lab(zpool, dedup="on-for-ever")
    volume = other.private(content=b"two")
    assert prop(volume, "dedup") == ["on"]
    assert "dedup" not in local(volume.dataset)
    assert other.restart().config["dedup"] == "on-for-ever"
    other.run(other.again(volume).remove())


def test_invalid_features_are_refused(lab, qube, volumes):
    for feature, value in {
        "zfs.encryption": "off",
        "zfs.compression": "fast",
        "zfs.kernel.sync": "always",
        "zfs.dedup": "off",
        "zfs.reset-on-start": "root",
    }.items():
        match = f"^Cannot set the feature {feature} of work: "
        with pytest.raises(QubesValueError, match=match):
            qube.set(feature, value)
    assert not qube.features


# --- volumes that are reset at each start


def session(lab, volume, content):
    """Return the content at start; then write *content* and stop."""
    lab.start(volume)
    found = read(volume.path)
    write(volume.path, content)
    lab.stop(volume)
    return found


def states(lab, volume):
    """Return the content of each revision."""
    contents = {}
    for name in sh(
        "zfs", "list", "-Hrt", "snapshot", "-o", "name", volume.where.dataset
    ).split():
        if "/private" in name and "@r" in name:
            copy = f"{lab.pool.zpool}/look"
            sh("zfs", "clone", "-o", "volmode=dev", name, copy)
            sh("udevadm", "settle")
            contents[name.rpartition("@")[2]] = read(f"/dev/zvol/{copy}")
            sh("zfs", "destroy", copy)
    return contents


def test_reset_on_start_empties_a_volume(lab, qube, volumes):
    private = volumes[1]
    qube.set("zfs.reset-on-start", "private")
    for number in range(1, 5):
        assert session(lab, private, b"session %d" % number) == b""
    # the final states of sessions are kept as revisions
    left = states(lab, private)
    assert sorted(left.values()) == [b"session 2", b"session 3", b"session 4"]
    assert len(private.revisions) == 2
    lab.run(private.revert())
    assert lab.content(private) == b"session 3"

    del qube.features["zfs.reset-on-start"]
    lab.start(private)
    assert read(private.path) == b"session 3"
    lab.stop(private)


def test_reset_on_start_keeps_its_revision(lab, qube, volumes):
    private = volumes[1]
    for content in b"one", b"two", b"three":
        lab.session(private, content)
    base = list(private.revisions)[-1]
    qube.set("zfs.reset-on-start", f"private={base}")
    for number in range(1, 6):
        assert session(lab, private, b"session %d" % number) == b"two"
        assert base in private.revisions
    left = states(lab, private)
    assert left.pop(base) == b"two"
    assert sorted(left.values()) == [b"session 3", b"session 4", b"session 5"]

    # reset to another revision, the state of the last stop
    newest = private.view.committed_ids()[-1]
    qube.set("zfs.reset-on-start", f"private={newest}")
    assert session(lab, private, b"six") == b"session 5"
    assert session(lab, private, b"seven") == b"session 5"
    assert base not in private.revisions and newest in private.revisions

    qube.features.clear()
    assert session(lab, private, b"eight") == b"seven"
    assert session(lab, private, b"nine") == b"eight"
    assert newest not in private.revisions


@pytest.mark.parametrize("named", [True, False])
def test_repeated_start_creates_no_second_generation(lab, qube, volumes, named):
    """Start twice; then start again after a session that wrote nothing."""
    private = volumes[1]
    lab.session(private, b"one")
    base = f"={private.view.committed_ids()[-1]}" if named else ""
    qube.set("zfs.reset-on-start", f"private{base}")
    lab.run(private.start())
    guid, ids = prop(private, "guid"), private.view.committed_ids()
    lab.run(private.start())
    assert (prop(private, "guid"), private.view.committed_ids()) == (guid, ids)
    lab.stop(private)
    lab.restart()
    lab.start(private)
    assert (prop(private, "guid"), private.view.committed_ids()) == (guid, ids)
    lab.stop(private)


def test_reset_on_start_keeps_uncommitted_content_as_a_revision(
    lab, qube, volumes
):
    """Nobody called stop(), and no transaction group has ended since: the
    last to close a zvol waits for one, so somebody else has it open."""
    private = volumes[1]
    qube.set("zfs.reset-on-start", "private")
    lab.start(private)
    with open_device(private.path, os.O_RDWR) as opened:
        opened.write(b"lost?".ljust(512, b"\0"))
        assert session(lab, private, b"next") == b""
    assert b"lost?" in states(lab, private).values()


def test_reset_to_a_missing_revision_is_refused(lab, qube, volumes):
    private = volumes[1]
    lab.session(private, b"one")
    lab.session(private, b"two")
    ids = private.view.committed_ids()
    with pytest.raises(
        QubesValueError, match=f"no revision r99; .*, {ids[-1]} "
    ):
        qube.set("zfs.reset-on-start", "private=r99")
    qube.features["zfs.reset-on-start"] = "private=r99"
    with pytest.raises(
        StoragePoolException,
        match="no revision r99, which the feature zfs.reset-on-start names",
    ):
        lab.run(private.start())
    assert (
        lab.content(private) == b"two" and private.view.committed_ids() == ids
    )


def test_reset_on_start_of_a_blank_volume_accepts_any_revision(
    lab, qube, volumes
):
    qube.set("zfs.reset-on-start", "private=r7")
    assert volumes[1].view.committed_ids() == []


def test_reset_on_start_keeps_the_size_after_a_resize(lab, qube, volumes):
    private = volumes[1]
    lab.session(private, b"one")
    base = private.view.committed_ids()[-1]
    qube.set("zfs.reset-on-start", f"private={base}")
    lab.run(private.resize(8 * MIB))
    assert session(lab, private, b"two") == b"one"
    assert private.size == 8 * MIB
    assert int(prop(private, "volsize")[0]) == 8 * MIB
    assert session(lab, private, b"three") == b"one"


@pytest.mark.parametrize("keep", [-1, 0])
def test_reset_on_start_works_without_revisions(lab, qube, volumes, keep):
    private = volumes[1]
    private.revisions_to_keep = keep
    qube.set("zfs.reset-on-start", "private")
    for content in b"one", b"two":
        assert session(lab, private, content) == b""
    assert list(states(lab, private).values()) == (
        [b"two"] if keep == 0 else []
    )


def test_reset_of_a_template_outdates_its_clones(lab):
    template = Qube("tmpl")
    source = lab.private("tmpl", b"v1", name="root")
    template.takes(source)
    template.set(
        "zfs.reset-on-start", f"root={source.view.committed_ids()[-1]}"
    )
    lab.session(source, b"v2")
    clone = lab.clone_of(source)
    lab.session(clone, b"x")
    lab.start(clone)
    assert read(clone.path) == b"v2"
    lab.start(source)
    assert clone.is_outdated()
    lab.stop(clone, source)
    lab.start(clone)
    assert read(clone.path) == b"v1"
    lab.stop(clone)


def test_remove_destroys_all_generations_of_a_reset_volume(lab, qube, volumes):
    private = volumes[1]
    qube.set("zfs.reset-on-start", "private")
    for content in b"one", b"two":
        session(lab, private, content)
    lab.run(private.remove())
    assert not [name for name in lab.datasets() if "/private" in name]
