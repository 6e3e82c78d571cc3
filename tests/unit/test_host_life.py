# SPDX-License-Identifier: BSD-2-Clause
"""The stand-in for Qubes OS: how it treats the volumes of any driver."""

import asyncio
import collections
import os
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "host"))

import qubes.exc
import qubes.ext
import qubes.storage

if not hasattr(qubes.storage, "placeholder"):
    pytest.skip("a real qubes package is used", allow_module_level=True)

import hostapi
from memory_driver import MemoryPool


@pytest.fixture(name="app")
def fixture_app(tmp_path, monkeypatch):
    """Return a system with the pool "mem"."""
    monkeypatch.setattr(qubes.storage, "VOLUME_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(MemoryPool, "calls", [])
    monkeypatch.setattr(MemoryPool, "failing", set())
    monkeypatch.setattr(MemoryPool, "configs", [])
    monkeypatch.setattr(MemoryPool, "folder", str(tmp_path))
    hostapi.register_driver("memory", MemoryPool)
    app = hostapi.new_app(tmp_path / "qubes.xml", hold_devices=True)
    asyncio.run(hostapi.add_pool(app, "mem", "memory", colour="red"))
    return app


async def make(app):
    """Create a template and an app qube based on it."""
    tmpl = await hostapi.create_vm(app, "TemplateVM", "tmpl", pool="mem")
    work = await hostapi.create_vm(
        app, "AppVM", "work", template="tmpl", pool="mem"
    )
    return tmpl, work


def drain():
    """Return the recorded calls and clear the record."""
    calls = MemoryPool.calls[:]
    MemoryPool.calls.clear()
    return calls


def test_adding_a_pool_checks_options_and_calls_setup(app):
    """A pool whose setup() fails is not added; options are checked."""
    assert drain() == ["init mem", "setup mem"]

    async def run():
        add = hostapi.add_pool
        with pytest.raises(qubes.exc.QubesException, match="missing.*colour"):
            await add(app, "a", "memory")
        with pytest.raises(qubes.exc.ProtocolError):
            await add(app, "a", "memory", colour="x", size="1")
        with pytest.raises(qubes.exc.StoragePoolException):
            await add(app, "a", "memory", colour="broken")
        with pytest.raises(qubes.exc.QubesPoolInUseError):
            await add(app, "mem", "memory", colour="x")

    asyncio.run(run())
    assert list(app.pools) == ["varlibqubes", "mem"]
    assert drain() == ["init a", "setup a"]


def test_a_restart_passes_options_as_strings(app):
    """All options are strings then, except the booleans of volumes."""

    async def run():
        await make(app)
        app.pools["mem"].revisions_to_keep = 4
        MemoryPool.configs.clear()
        return await hostapi.restart(app, save=True)

    new = asyncio.run(run())
    assert new.pools["mem"] is not app.pools["mem"]
    assert new.pools["mem"].made_with == {
        "colour": "red",
        "keep": "4",
        "ephemeral_volatile": "False",
    }
    configs = {(vm, conf["name"]): conf for vm, conf in MemoryPool.configs}
    private = configs["work", "private"]
    assert private["size"] == str(2 << 30)
    assert private["revisions_to_keep"] == "0"
    assert private["rw"] is True and private["snap_on_start"] is False
    assert private["pool"] == "mem" and private["vid"] == "work/private"
    assert configs["work", "root"]["source"].vid == "tmpl/root"
    work = new.domains["work"]
    assert work.template is new.domains["tmpl"]
    assert work.tags == {"created-by-dom0"} and str(work.label) == "red"
    assert work.uuid == app.domains["work"].uuid


def test_unsaved_changes_are_lost_at_a_restart(app):
    """Without save=True, qubesd reads the file as it is."""
    app.pools["mem"].revisions_to_keep = 4
    new = asyncio.run(hostapi.restart(app))
    assert new.pools["mem"].revisions_to_keep == "1"


def test_a_restart_stops_only_halted_qubes(app):
    """qubesd stops the volumes of halted qubes; other qubes keep running."""

    async def run():
        _tmpl, work = await make(app)
        for name in work.volumes:
            pathlib.Path(work.volumes[name].path).touch()
        await work.start()
        drain()
        new = await hostapi.restart(app)
        stops = [call for call in drain() if call.startswith("stop")]
        assert stops == ["stop tmpl/root", "stop tmpl/private"] + [
            "stop tmpl/volatile"
        ]
        assert new.domains["work"].is_running()
        assert new.domains["work"].volumes["private"].is_running()
        await new.domains["work"].shutdown()
        assert "stop work/private" in drain()
        assert not new.domains["work"].volumes["private"].is_running()

    asyncio.run(run())


def test_an_offline_copy_is_independent(app):
    """The copy has objects of its own, and all its qubes are halted."""

    async def run():
        tmpl, _work = await make(app)
        await tmpl.start()
        drain()
        copy = hostapi.offline_copy(app)
        assert drain() == ["init mem"]
        assert copy.pools["mem"] is not app.pools["mem"]
        assert copy.vmm.offline_mode and not app.vmm.offline_mode
        assert tmpl.is_running()
        assert not copy.domains["tmpl"].is_running()

    asyncio.run(run())


def test_volumes_are_verified_before_any_starts(app):
    """A missing disk fails the start of the qube."""

    async def run():
        tmpl, work = await make(app)
        drain()
        await tmpl.start()
        names = "root", "private", "volatile"
        assert drain() == [f"verify tmpl/{name}" for name in names] + [
            f"start tmpl/{name}" for name in names
        ]
        assert await tmpl.start() is tmpl and not drain()
        await tmpl.kill()
        assert drain() == [f"stop tmpl/{name}" for name in names]
        os.remove(work.volumes["private"].path)
        with pytest.raises(FileNotFoundError):
            await work.start()
        assert drain()[-1] == "stop work/volatile" and work.is_halted()

    asyncio.run(run())


def test_a_failed_start_stops_no_volume(app):
    """Volumes that have started stay started if another volume fails."""

    async def run():
        tmpl, _work = await make(app)
        MemoryPool.failing.add("start tmpl/root")
        drain()
        with pytest.raises(qubes.exc.StoragePoolException):
            await tmpl.start()
        calls = drain()
        assert "start tmpl/volatile" in calls
        assert not [call for call in calls if call.startswith("stop")]

    asyncio.run(run())


def test_a_crash_is_handled_by_the_next_start(app):
    """A lost stop event leads to stop() before the next start."""

    async def run():
        tmpl, _work = await make(app)
        await tmpl.start()
        tmpl.crash()
        assert tmpl.is_halted()
        drain()
        await tmpl.start()
        assert drain()[0] == "stop tmpl/root"

    asyncio.run(run())


def test_a_failed_creation_removes_the_qube(app):
    """If one volume cannot be created, qubesd removes the others."""

    async def run():
        MemoryPool.failing.add("create solo/private")
        drain()
        with pytest.raises(qubes.exc.StoragePoolException):
            await hostapi.create_vm(app, "StandaloneVM", "solo", pool="mem")

    asyncio.run(run())
    calls = drain()
    assert calls.index("stop solo/root") < calls.index("remove solo/root")
    assert "remove solo/private" in calls
    assert "solo" not in app.domains
    assert not os.path.exists(os.path.join(MemoryPool.folder, "solo+root"))
    assert not os.listdir(os.path.join(MemoryPool.folder, "appvms"))


def test_a_pool_in_use_cannot_be_removed(app):
    """A volume with a source is in the pool of its source."""

    async def run():
        tmpl, _work = await make(app)
        other = await hostapi.create_vm(
            app, "AppVM", "other", template=tmpl, pool="varlibqubes"
        )
        pools = {name: str(vol.pool) for name, vol in other.volumes.items()}
        assert pools == {
            "root": "mem",
            "private": "varlibqubes",
            "volatile": "varlibqubes",
        }
        with pytest.raises(qubes.exc.QubesPoolInUseError):
            await hostapi.remove_pool(app, "mem")
        for name in "other", "work", "tmpl":
            await hostapi.remove_vm(app.domains[name])
        await hostapi.remove_pool(app, "mem")
        assert "mem" not in app.pools

    asyncio.run(run())


def test_a_disposable_has_the_volumes_of_its_templates(app):
    """The root volume has the source of its template's root volume."""

    async def run():
        _tmpl, work = await make(app)
        with pytest.raises(qubes.exc.QubesValueError):
            await hostapi.create_vm(app, "DispVM", "disp1", template=work)
        work.template_for_dispvms = True
        disp = await hostapi.create_vm(app, "DispVM", "disp1", template=work)
        assert disp.volumes["root"].source.vid == "tmpl/root"
        assert disp.volumes["private"].source.vid == "work/private"
        assert list(work.dispvms) == [disp]
        new = await hostapi.restart(app, save=True)
        assert list(new.domains["work"].dispvms) == [new.domains["disp1"]]

    asyncio.run(run())


def test_volume_operations_follow_the_admin_api(app, tmp_path):
    """Import, clear, clone, back up, revert and resize as the Admin API does."""
    image = tmp_path / "image"
    image.write_bytes(bytes(200000) + b"data")

    async def run():
        tmpl, work = await make(app)
        size = image.stat().st_size
        drain()
        await hostapi.import_file(tmpl, "private", image, size)
        assert drain()[-1] == "import_data_end(True) tmpl/private"
        data = await hostapi.backup_volume(tmpl, "private")
        assert data == image.read_bytes()
        with pytest.raises(qubes.exc.QubesException, match="import failed"):
            await hostapi.import_file(tmpl, "private", image, size + 1)
        assert drain()[-1] == "import_data_end(False) tmpl/private"
        await hostapi.import_file(tmpl, "private", image, size)
        before = work.volumes["private"]
        after = await hostapi.clone_volume(tmpl, work, "private")
        assert after is work.volumes["private"] is not before
        assert await hostapi.backup_volume(work, "private") == data
        await hostapi.clear(tmpl, "private")
        assert not any(await hostapi.backup_volume(tmpl, "private"))
        with pytest.raises(qubes.exc.QubesVolumeRevisionNotFoundError):
            await hostapi.revert(work, "private", "none")
        await hostapi.revert(work, "private", "first")
        assert drain()[-1] == "revert(first) work/private"
        await work.start()
        await hostapi.resize(work, "private", 300000)
        assert work.services[0][0] == "qubes.ResizeDisk"
        with pytest.raises(qubes.exc.QubesVMNotHaltedError):
            await hostapi.import_file(work, "private", image, size)
        assert hostapi.volume_info(work, "private")["size"] == "300000"
        assert hostapi.pool_info(app, "mem")["colour"] == "red"
        assert hostapi.list_snapshots(work, "private") == ["first"]

    asyncio.run(run())


def test_extensions_receive_events(app, monkeypatch):
    """The handlers of an extension run, and can refuse a start."""
    recorded = []
    for cls in qubes.vm.LocalVM, qubes.Qubes:
        monkeypatch.setattr(cls, "__handlers__", collections.defaultdict(list))

    class Listener(qubes.ext.Extension):
        """An extension that records events, and refuses some starts."""

        @qubes.ext.handler("domain-*")
        def on_any(self, vm, event, **_kwargs):
            """Record an event of a qube."""
            recorded.append(f"{event} {vm.name}")

        @qubes.ext.handler("domain-pre-start")
        async def on_pre_start(self, vm, _event, **_kwargs):
            """Refuse the start if the qube has the feature "refuse"."""
            if vm.features.get("refuse"):
                raise qubes.exc.QubesException("refused")

        @qubes.ext.handler("pool-add", system=True)
        def on_pool_add(self, _app, event, pool):
            """Record an event of the system."""
            recorded.append(f"{event} {pool}")

    Listener()

    async def run():
        tmpl, _work = await make(app)
        await hostapi.add_pool(app, "two", "memory", colour="x")
        await tmpl.start()
        await tmpl.shutdown()
        tmpl.features["refuse"] = True
        with pytest.raises(qubes.exc.QubesException, match="refused"):
            await tmpl.start()

    asyncio.run(run())
    assert "pool-add two" in recorded
    mine = [event.split()[0] for event in recorded if event.endswith(" tmpl")]
    assert [event for event in mine if "tag" not in event] == [
        "domain-init",
        "domain-create-on-disk",
        "domain-pre-start",
        "domain-verify-files",
        "domain-pre-spawn",
        "domain-spawn",
        "domain-start",
        "domain-pre-shutdown",
        "domain-stopped",
        "domain-shutdown",
        "domain-feature-pre-set:refuse",
        "domain-feature-set:refuse",
        "domain-pre-start",
        "domain-start-failed",
    ]
