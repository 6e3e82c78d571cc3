# SPDX-License-Identifier: BSD-2-Clause
"""QubesVM, a qube with volumes that can run."""

import asyncio
import os
import shutil
from typing import Any

import lxml.etree
import qubes.events
import qubes.exc
import qubes.storage
from qubes.release import IS_R43
from qubes.vm import LocalVM

_KEPT_CONFIG = (
    *("name", "pool", "size", "rw"),
    *("snap_on_start", "save_on_stop", "source"),
)


def _patch_volume_config(volume_config, pool, pools):
    """A copy that puts volumes which are no snapshots into other pools."""
    assert not (pool and pools), "either pool or pools"
    result = {}
    for name, config in volume_config.items():
        config = {k: v for k, v in config.items() if k in _KEPT_CONFIG}
        snapshot = config["snap_on_start"]
        if pool:
            if config["rw"] and not snapshot:
                config["pool"] = str(pool)
        elif name in pools:
            if snapshot:
                raise qubes.exc.QubesException(
                    f"Snapshot volume {name} has to be in the pool of its "
                    f"origin, not in {pools[name]}"
                )
            config["pool"] = str(pools[name])
        result[name] = config
    return result


class QubesVM(LocalVM):
    """Base of the qubes that run; subclasses set volume_config first."""

    PROPERTIES = {**LocalVM.PROPERTIES, "label": str}
    DIRECTORY = "appvms"
    guivm = None
    volume_config: dict[str, dict[str, Any]]

    def __init__(self, app, xml, volume_config=None, **kwargs):
        super().__init__(app, xml, **kwargs)
        changes = {}
        nodes = [] if xml is None else xml.iterfind("volume-config/volume")
        for node in nodes:
            words = {"True": True} if IS_R43 else {"True": True, "False": False}
            changes[node.get("name")] = {
                key: words.get(value, value) for key, value in node.items()
            }
        for source in changes, volume_config or {}:
            for name, config in source.items():
                self.volume_config.setdefault(name, {}).update(config)
        self.startup_lock = asyncio.Lock()
        self._stop_pending = False
        #: (service, keyword arguments) of all services called
        self.services = []
        self.events_enabled = xml is None
        self.fire_event("domain-init")

    @qubes.events.handler("domain-init", "domain-load")
    def on_domain_init_loaded(self, _event):
        """Make the volumes, unless a qube based on this one did."""
        if self.storage is None:
            self.storage = qubes.storage.Storage(self)
        self._stop_pending = self.is_running()

    def __xml__(self):
        element = super().__xml__()
        volumes = lxml.etree.SubElement(element, "volume-config")
        volumes.extend([vol.__xml__() for vol in self.volumes.values()])
        return element

    @property
    def dir_path(self):
        """The qube's directory, below that of the XML file."""
        base = os.path.dirname(self.app.store)
        return os.path.join(base, self.DIRECTORY, self.name)

    def is_running(self):
        """Whether the domain runs; never in an offline copy."""
        vmm = self.app.vmm
        return not vmm.offline_mode and vmm.hypervisor.is_running(self.name)

    def is_halted(self):
        """Whether the domain does not run."""
        return not self.is_running()

    def get_power_state(self):
        """State as text."""
        return "Running" if self.is_running() else "Halted"

    async def run_service_for_stdio(self, service, **kwargs):
        """Record the call of a service in the qube, and answer it."""
        if self.is_halted():
            raise qubes.exc.QubesVMNotRunningError(self)
        self.services.append((service, kwargs))
        return b"", b""

    async def start(self):
        """Start a halted qube.

        When the volumes do not start, those that did stay started; when
        anything later fails they are stopped.
        """
        async with self.startup_lock:
            if self not in self.app.domains:
                raise qubes.exc.QubesVMNotFoundError(self.name)
            if not self.is_halted():
                return self
            await self._handle_stop()
            try:
                await self.fire_event_async("domain-pre-start", True)
                await self.storage.verify()
                await self.storage.start()
            except Exception as exc:
                await self._start_failed(exc)
                raise
            try:
                await self.fire_event_async("domain-pre-spawn", True)
                self.app.vmm.hypervisor.create(
                    self.name, list(self.storage.block_devices())
                )
            except Exception as exc:
                await self._start_failed(exc)
                await self.storage.stop()
                raise
            self._stop_pending = True
            try:
                await self.fire_event_async("domain-spawn")
                await self.fire_event_async("domain-start")
            except Exception as exc:
                await self._start_failed(exc)
                await self.kill()
                raise
        return self

    async def _start_failed(self, exc):
        await self.fire_event_async("domain-start-failed", reason=str(exc))

    async def shutdown(self, force=False, wait=True):
        """End the qube; here always waits until it was cleaned up."""
        if self.is_halted():
            raise qubes.exc.QubesVMNotStartedError(self)
        await self.fire_event_async("domain-pre-shutdown", True, force=force)
        await self.kill()
        return self

    async def kill(self):
        """End the qube without asking."""
        if self.is_halted():
            raise qubes.exc.QubesVMNotStartedError(self)
        self.crash()
        await self._handle_stop()

    def crash(self):
        """End the domain without an event, as if the event was lost.

        The next start or removal cleans up, or stop_storage() after a
        restart of the daemon.
        """
        self.app.vmm.hypervisor.destroy(self.name)

    async def _handle_stop(self):
        """Clean up after a domain that ended, once."""
        if self._stop_pending:
            self._stop_pending = False
            await self.fire_event_async("domain-stopped")
            await self.fire_event_async("domain-shutdown")

    @qubes.events.handler("domain-stopped")
    async def on_domain_stopped(self, _event):
        """Stop the volumes; log a refusal of a driver."""
        try:
            await self.storage.stop()
        except qubes.exc.StoragePoolException:
            self.log.exception("Failed to stop storage")

    async def create_on_disk(self, pool=None, pools=None):
        """Create the volumes; after a failure remove what there is."""
        os.makedirs(self.dir_path, mode=0o775, exist_ok=True)
        if pool or pools:
            self.volume_config = _patch_volume_config(
                self.volume_config, pool, pools
            )
            self.storage = qubes.storage.Storage(self)
        try:
            await self.storage.create()
        except BaseException:
            try:
                await self.storage.remove()
                os.rmdir(self.dir_path)
            except BaseException:
                self.log.exception("failed to clean up %s", self.dir_path)
            raise
        await self.fire_event_async("domain-create-on-disk")

    async def remove_from_disk(self):
        """Remove the volumes and, in any case, the directory."""
        if not self.is_halted():
            raise qubes.exc.QubesVMNotHaltedError(self)
        await self._handle_stop()
        await self.fire_event_async("domain-remove-from-disk")
        try:
            await self.storage.remove()
        finally:
            shutil.rmtree(self.dir_path, ignore_errors=True)
