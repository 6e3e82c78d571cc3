# SPDX-License-Identifier: BSD-2-Clause
"""Loading and unloading of keys by the events of qubesd."""

import asyncio
import logging
import os

import pytest
from qubes.exc import (
    QubesException,
    QubesVMInUseError,
    StoragePoolException,
)

from qubes_storage_zfs.driver import backoff, prompts
from qubes_storage_zfs.zfs import keys, runtime

from ..support.background import afterwards
from ..support.lab import becomes_locked
from ..support.prompts import cancelled
from ..support.zpools import read, sh, write

if "QUBES_CORE_ADMIN" in os.environ:
    pytest.skip(
        "drives the stand-in's app; a real one needs libvirt",
        allow_module_level=True,
    )

import hostapi

pytestmark = [
    pytest.mark.side_b,
    pytest.mark.usefixtures("run_dir", "person"),
]


async def two_pools(app, zpool, timeout):
    """Add a plain and an encrypted pool; the private volumes are encrypted."""
    name = os.path.basename(os.path.dirname(app.store))
    plain = await hostapi.add_pool(
        app, "plain", "zfs_zvol", container=f"{zpool}/{name}"
    )
    await hostapi.add_pool(
        app,
        f"safe-{name}"[:60],
        "zfs_encrypted",
        zpool_name=zpool,
        pbkdf2iters="100000",
        unload_timeout=str(timeout),
    )
    app.default_pool = plain
    await hostapi.create_vm(app, "TemplateVM", "tmpl", pool="plain")
    safe = app.pools[f"safe-{name}"[:60]]
    for qube in "work", "home":
        await hostapi.create_vm(
            app,
            "AppVM",
            qube,
            template="tmpl",
            pools={"private": safe.name},
        )
    return safe


def test_key_is_loaded_at_a_start_and_unloaded_after_the_stop(
    app, person, zpool
):
    async def story():
        safe = await two_pools(app, zpool, 0)
        assert await becomes_locked(safe)
        person.asked.clear()
        person.domains.clear()
        work, home = app.domains["work"], app.domains["home"]
        await asyncio.gather(work.start(), home.start())
        assert person.asked == ["unlock"]
        assert person.domains[0][1] in ("work", "home")
        write(work.volumes["private"].path, b"work one")
        await work.shutdown()
        # home runs
        await asyncio.sleep(2)
        assert (await keys.state(safe.container)).loaded
        home.crash()
        await home._handle_stop()
        assert await becomes_locked(safe)
        await work.start()
        assert person.asked == ["unlock", "unlock"]
        assert read(work.volumes["private"].path) == b"work one"
        await work.shutdown()
        assert await becomes_locked(safe)

    asyncio.run(story())


@pytest.mark.parametrize("reply", [cancelled(), b"\0garbage"])
def test_start_without_a_key_is_refused(app, person, zpool, reply):
    async def story():
        safe = await two_pools(app, zpool, 0)
        assert await becomes_locked(safe)
        work = app.domains["work"]
        before = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", zpool)
        person.replies = [reply]
        with pytest.raises(QubesException, match="^Cannot start work: "):
            await work.start()
        assert not work.is_running() and await becomes_locked(safe)
        assert before == sh(
            "zfs", "list", "-Hrt", "all", "-o", "name,guid", zpool
        )
        safe.key.backoff.reset()
        await work.start()
        await work.shutdown()

    asyncio.run(story())


def test_key_is_unloaded_after_a_failed_start(app, person, zpool):
    async def story():
        safe = await two_pools(app, zpool, 0)
        work = app.domains["work"]
        volatile = work.volumes["volatile"]

        async def fail():
            # after the start of all other volumes
            await asyncio.sleep(1)
            raise StoragePoolException("no")

        volatile.start = fail
        with pytest.raises(QubesException, match="no"):
            await work.start()
        assert await becomes_locked(safe)
        del volatile.start
        await work.start()
        assert (await keys.state(safe.container)).loaded
        await work.shutdown()
        assert await becomes_locked(safe)

    asyncio.run(story())


def test_restarted_qubesd_keeps_the_key_of_running_qubes(app, person, zpool):
    async def story():
        safe = await two_pools(app, zpool, 1)
        await app.domains["work"].start()
        person.asked.clear()
        runtime.restart()
        again = await hostapi.restart(app)
        # qubesd first calls stop() for all halted qubes, without a prompt
        await asyncio.sleep(3)
        assert person.asked == []
        assert (await keys.state(safe.container)).loaded
        work = again.domains["work"]
        await work.shutdown()
        # the new qubesd did not start this qube
        await work.fire_event_async("domain-shutdown")
        assert await becomes_locked(safe)

    asyncio.run(story())


def test_volumes_in_unencrypted_pools_are_logged(app, person, zpool, caplog):
    async def story():
        with caplog.at_level(logging.WARNING):
            safe = await two_pools(app, zpool, 1200)
        text = caplog.text
        assert "qube work: its volume root is written to the pool plain" in text
        assert "volatile" in text and "private" not in text
        assert safe.included_in(app) is None

    asyncio.run(story())


def test_disposable_volumes_are_prepared_when_a_qube_is_created(
    app, person, zpool
):
    async def story():
        await two_pools(app, zpool, 1200)
        await afterwards()
        work = app.domains["work"]
        made = {
            name: work.volumes[name].dataset for name in ("root", "volatile")
        }
        sh("zfs", "list", *made.values())
        await work.start()
        assert {name: work.volumes[name].dataset for name in made} == made
        await work.shutdown()

    asyncio.run(story())


def test_prompts_of_qubes_are_delayed_after_failures(
    app, person, zpool, monkeypatch
):
    """A qube may open links in disposables whose pool is locked."""
    clock = [1000.0]
    monkeypatch.setattr(backoff, "now", lambda: clock[0])

    async def refused(qube, why):
        person.asked.clear()
        person.domains.clear()
        with pytest.raises(QubesException, match=why):
            await app.domains[qube].start()
        return person.asked

    async def started(qube):
        person.asked.clear()
        await app.domains[qube].start()
        await app.domains[qube].shutdown()
        return person.asked

    async def story():
        safe = await two_pools(app, zpool, -1)
        await keys.unload(safe.container)
        for minutes in 1, 2:
            person.replies = [cancelled()]
            assert await refused("work", "prompt was cancelled") == ["unlock"]
            # the prompt names the qube
            assert person.domains == [(None, "work")]
            assert await refused("home", "shows no other prompt before") == []
            clock[0] += 60 * minutes - 1
            assert await refused("work", "sudo qvm-zfs unlock safe-") == []
            clock[0] += 1
        person.replies = [b"wrong one", b"wrong two", b"wrong three"]
        assert len(await refused("home", "passphrase was wrong")) == 3
        assert await refused("work", "shows no other prompt before") == []
        # an unlock in dom0 is not delayed, and the key is used
        await keys.load(safe.container, person)
        assert await started("work") == []
        await keys.unload(safe.container)
        assert await started("home") == ["unlock"]

    asyncio.run(story())


def test_qube_that_shows_the_prompt_cannot_be_removed(
    app, person, zpool, monkeypatch
):
    monkeypatch.setattr(runtime.of(prompts.CurrentApplication), "app", app)

    async def add(name, domain):
        options = {"zpool_name": zpool, "pbkdf2iters": "100000"}
        return await hostapi.add_pool(
            app, name, "zfs_encrypted", ask_password_domain=domain, **options
        )

    async def story():
        name = os.path.basename(os.path.dirname(app.store))[:50]
        with pytest.raises(StoragePoolException, match="which does not exist"):
            await add(f"ask-{name}", "screen")
        assert person.asked == []
        await hostapi.create_vm(app, "StandaloneVM", "screen", label="black")
        pool = await add(f"ask-{name}", "screen")
        screen = app.domains["screen"]
        chosen = pool.ask_domain
        assert chosen.find(app, "") is screen
        with pytest.raises(
            QubesVMInUseError, match="shows its passphrase prompt"
        ):
            await hostapi.remove_vm(screen)
        again = await hostapi.restart(app)
        assert again.pools[pool.name].ask_domain == chosen
        with pytest.raises(QubesVMInUseError, match=pool.name):
            await hostapi.remove_vm(again.domains["screen"])
        # the qube is removed without events; another one gets its name
        again.events_enabled = False
        await hostapi.remove_vm(again.domains["screen"])
        again.events_enabled = True
        await hostapi.create_vm(again, "StandaloneVM", "screen", label="red")
        with pytest.raises(prompts.NoPrompt, match="is not the one"):
            prompts.domain_for(again.pools[pool.name].ask_domain, None, again)
        await hostapi.remove_vm(again.domains["screen"])
        await hostapi.remove_pool(again, pool.name)

    asyncio.run(story())
