# SPDX-License-Identifier: BSD-2-Clause
"""Tags for pools, and features, set by the events of qubesd."""

import asyncio
import os

import pytest
from qubes.exc import QubesException, QubesValueError

from qubes_storage_zfs.zfs import runtime

from ..support.background import settled
from ..support.zpools import read, sh, write

if "QUBES_CORE_ADMIN" in os.environ:
    pytest.skip(
        "drives the stand-in's app; a real one needs libvirt",
        allow_module_level=True,
    )

import hostapi

pytestmark = pytest.mark.side_b


async def pools(app, zpool):
    """Add pools "one" and "two", and "silent" and "a.b", which set no tags."""
    above = f"{zpool}/{os.path.basename(os.path.dirname(app.store))}"
    sh("zfs", "create", above)
    for name, more in {
        "one": {},
        "two": {},
        "silent": {"tag_qubes": "False"},
        "a.b": {},
    }.items():
        place = {"container": f"{above}/{name}"}
        await hostapi.add_pool(app, name, "zfs_zvol", **place, **more)
    app.default_pool = app.pools["one"]
    await hostapi.create_vm(app, "TemplateVM", "tmpl")


def ours(qube):
    return {tag for tag in qube.tags if tag.startswith("zfs-pool-")}


def story(app, zpool):
    """Return a decorator that runs a coroutine function at once."""

    def tell(function):
        async def whole():
            await pools(app, zpool)
            await function()

        asyncio.run(settled(whole()))

    return tell


def test_qube_has_a_tag_for_each_pool_of_its_kept_volumes(app, zpool):
    @story(app, zpool)
    async def _():
        tmpl = app.domains["tmpl"]
        assert ours(tmpl) == {"zfs-pool-one"}
        for pool, tags in {
            "one": {"zfs-pool-one"},
            "two": {"zfs-pool-two"},
            "silent": set(),
            "a.b": set(),
        }.items():
            # its root is a disposable clone in the pool "one"
            qube = await hostapi.create_vm(
                app, "AppVM", f"in-{pool[0]}", pool=pool, template="tmpl"
            )
            assert ours(qube) == tags
        both = await hostapi.create_vm(
            app, "StandaloneVM", "both", pools={"private": "two"}
        )
        assert ours(both) == {"zfs-pool-one", "zfs-pool-two"}
        both.tags.add("mine")

        # saved, and correct after loading
        runtime.restart()
        again = await hostapi.restart(app, save=True)
        assert both.tags == again.domains["both"].tags


def test_wrong_tags_are_corrected(app, zpool):
    @story(app, zpool)
    async def _():
        work = await hostapi.create_vm(app, "AppVM", "work", template="tmpl")
        copy = await hostapi.clone_vm(work, "copy", pool="two")
        assert ours(copy) == {"zfs-pool-two"}
        # a restored backup or an attacker may add tags
        for tag in "zfs-pool-two", "zfs-pool-gone", "zfs-pool-", "mine":
            work.tags.add(tag)
        assert work.tags == {"created-by-dom0", "zfs-pool-one", "mine"}
        work.tags.discard("zfs-pool-one")
        assert ours(work) == {"zfs-pool-one"}

        # tags that changed while this package was not installed
        for qube in work, copy:
            qube.events_enabled = False
            qube.tags.add("zfs-pool-silent")
            qube.tags.discard("zfs-pool-one")
        again = await hostapi.restart(app, save=True)
        assert ours(again.domains["work"]) == {"zfs-pool-one"}
        assert ours(again.domains["copy"]) == {"zfs-pool-two"}


def test_disposable_qube_has_no_tags_and_the_features_of_its_template(
    app, zpool
):
    @story(app, zpool)
    async def _():
        base = await hostapi.create_vm(
            app,
            "AppVM",
            "base",
            template="tmpl",
            template_for_dispvms=True,
        )
        base.features["zfs.compression"] = "off"
        base.features["zfs.reset-on-start"] = "private"
        disposable = await hostapi.create_vm(
            app, "DispVM", "disp7", template="base"
        )
        assert not ours(disposable)
        await disposable.start()
        for volume in disposable.volumes.values():
            dataset = volume.dataset
            value = sh("zfs", "get", "-Ho", "value", "compression", dataset)
            assert value.strip() == "off"
        await disposable.shutdown()
        await base.start()
        write(base.volumes["private"].path, b"kept?")
        await base.shutdown()
        await base.start()
        assert read(base.volumes["private"].path) == b""
        await base.shutdown()


def test_invalid_feature_is_refused_and_not_set(app, zpool):
    @story(app, zpool)
    async def _():
        tmpl = app.domains["tmpl"]
        tmpl.features["zfs.sync"] = "always"
        for feature, value in {
            "zfs.sync": "disabled; rm",
            "zfs.keylocation": "file:///etc/passwd",
            "zfs.root.dedup": "on",
        }.items():
            with pytest.raises(QubesValueError, match=feature):
                tmpl.features[feature] = value
        assert dict(tmpl.features) == {"zfs.sync": "always"}
        copy = await hostapi.clone_vm(tmpl, "copy")
        assert dict(copy.features) == {"zfs.sync": "always"}


def test_removal_of_a_pool_keeps_tags_of_other_pools(app, zpool):
    @story(app, zpool)
    async def _():
        with pytest.raises(QubesException):
            await hostapi.remove_pool(app, "one")
        await hostapi.remove_pool(app, "two")
        assert ours(app.domains["tmpl"]) == {"zfs-pool-one"}
