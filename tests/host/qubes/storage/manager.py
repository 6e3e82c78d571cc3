# SPDX-License-Identifier: BSD-2-Clause
"""Storage, which drives all volumes of one qube."""

import os
import subprocess

import qubes.exc
import qubes.utils
from qubes.exc import StoragePoolException
from qubes.release import IS_R43
from qubes.storage.volume import Volume


class Storage:
    """The volumes of *vm*, created together with this object."""

    def __init__(self, vm):
        self.vm = vm
        self.log = vm.log
        self.drive = None
        for name, config in getattr(vm, "volume_config", {}).items():
            self.init_volume(name, config)

    def _update_volume_config_source(self, name, volume_config):
        """Follow the templates to the volume that is no snapshot itself."""
        template = getattr(self.vm, "template", None)
        while template:
            source = template.volumes[name]
            volume_config["source"] = source
            volume_config["pool"] = source.pool
            volume_config["size"] = source.size
            if source.source is None:
                return
            template = getattr(template, "template", None)

    def init_volume(self, name, volume_config):
        """Complete *volume_config* in place, make the Volume, attach it."""
        app = self.vm.app
        volume_config.setdefault("name", name)
        if "source" in volume_config:
            template = getattr(self.vm, "template", None)
            if template and template.storage is None:
                template.storage = Storage(template)
            if volume_config["source"] is None:
                self._update_volume_config_source(name, volume_config)
            else:
                volumes = app.get_pool(volume_config["pool"]).volumes
                volume_config["source"] = volumes[volume_config["source"]]
        if "pool" not in volume_config:
            volume_config["pool"] = getattr(app, "default_pool_" + name)
        pool = app.get_pool(volume_config["pool"])
        volume = pool.init_volume(self.vm, volume_config.copy())
        self.vm.volumes[name] = volume
        return volume

    def get_volume(self, volume_or_name):
        """The volume itself, or the one of that name."""
        if isinstance(volume_or_name, str):
            return self.vm.volumes[volume_or_name]
        if isinstance(volume_or_name, Volume):
            return volume_or_name
        raise TypeError("neither a Volume nor a name")

    def get_disk_utilization(self):
        """Bytes used by all volumes together."""
        return sum(volume.usage for volume in self.vm.volumes.values())

    @property
    def outdated_volumes(self):
        """Volumes whose source has changed; none of a halted qube."""
        if self.vm.is_halted():
            return []
        return [vol for vol in self.vm.volumes.values() if vol.is_outdated()]

    def block_devices(self):
        """The disks, mapped ones for ephemeral volumes."""
        for volume in self.vm.volumes.values():
            device = volume.block_device()
            if device is None:
                continue
            if volume.ephemeral:
                device = volume.make_encrypted_device(device, self.vm.name)
            yield device

    async def create(self):
        """Create all volumes together."""
        await qubes.utils.void_coros_maybe(
            volume.create() for volume in self.vm.volumes.values()
        )

    async def verify(self):
        """Verify all volumes together."""
        vm = self.vm
        if not os.path.exists(vm.dir_path):
            raise qubes.exc.QubesVMError(vm, f"{vm.dir_path} is missing")
        await qubes.utils.void_coros_maybe(
            volume.verify() for volume in vm.volumes.values()
        )
        vm.fire_event("domain-verify-files")
        return True

    async def start(self):
        """Start all volumes together; those that fail undo no others."""
        volumes = self.vm.volumes
        for volume in volumes.values():
            source = volume.source
            if source and source.snapshots_disabled and source.is_running():
                raise qubes.exc.QubesVMError(
                    self.vm, f"Volume {source.vid} is running"
                )
        await qubes.utils.void_coros_maybe(
            (
                volume.start_encrypted(
                    volume.encrypted_volume_path(self.vm.name, name)
                )
                if volume.ephemeral
                else volume.start()
            )
            for name, volume in volumes.items()
        )
        for volume in volumes.values():
            with open(volume.state_file, "wb"):
                pass

    async def stop(self):
        """Stop all volumes together, as if all were encrypted."""
        volumes = self.vm.volumes
        await qubes.utils.void_coros_maybe(
            volume.stop_encrypted(
                volume.encrypted_volume_path(self.vm.name, name)
            )
            for name, volume in volumes.items()
        )
        for volume in volumes.values():
            qubes.utils.remove_file(volume.state_file)

    async def remove(self):
        """Stop, then remove all; only errors of the system are swallowed."""
        try:
            await self.stop()
        except (OSError, subprocess.SubprocessError):
            self.log.exception("a volume did not stop, going on")
        removals = []
        for volume in self.vm.volumes.values():
            self.log.info("removing volume %s", volume.vid)
            try:
                removals.append(volume.remove())
            except OSError:
                self.log.exception("volume %s is left", volume.name)
        try:
            await qubes.utils.void_coros_maybe(removals)
        except OSError:
            self.log.exception("some volume is left")

    async def clone_volume(self, src_vm, name):
        """Create the volume *name* with the data of *src_vm*'s volume."""
        config = self.vm.volume_config[name]
        pool = self.vm.app.get_pool(config["pool"])
        volume = pool.init_volume(self.vm, config)
        source = src_vm.volumes[name]
        await qubes.utils.coro_maybe(volume.create())
        await qubes.utils.coro_maybe(volume.import_volume(source))
        self.vm.volumes[name] = volume
        return volume

    async def clone(self, src_vm):
        """Clone all volumes together.

        After a failure the finished ones get remove() called, but the real
        package never awaits it, so a coroutine does not run here either.
        """
        self.vm.volumes = {}
        try:
            await qubes.utils.void_coros_maybe(
                self.clone_volume(src_vm, name)
                for name in self.vm.volume_config
            )
        except BaseException:
            for volume in self.vm.volumes.values():
                try:
                    volume.remove().close()
                except Exception:
                    pass
            os.rmdir(self.vm.dir_path)
            raise

    async def resize(self, volume, size):
        """Resize, and tell the qube if it is running."""
        volume = self.get_volume(volume)
        await qubes.utils.coro_maybe(volume.resize(size))
        if not self.vm.is_running():
            return
        try:
            await self.vm.run_service_for_stdio(
                "qubes.ResizeDisk", input=volume.name.encode(), user="root"
            )
        except subprocess.CalledProcessError as exc:
            text = exc.stderr.decode("ascii", "ignore").replace("%", "")
            raise StoragePoolException(
                f"Volume {volume} was resized, its file system not: {text}"
            ) from exc

    def set_revisions_to_keep(self, volume, value):
        """Set it; -1 goes in and out only while nothing uses the volume."""
        if value < -1:
            raise qubes.exc.QubesValueError("revisions_to_keep is too small")
        current = self.vm.volumes[volume].revisions_to_keep
        if value != current and -1 in (value, current):
            users = [self.vm]
            if self.vm.klass == "AppVM":
                users += self.vm.dispvms
            for vm in users:
                if vm.is_running():
                    raise qubes.exc.QubesVMNotHaltedError(vm)
        self.vm.volumes[volume].revisions_to_keep = value

    async def export(self, volume):
        """Start an export; return the path to read."""
        return await qubes.utils.coro_maybe(self.get_volume(volume).export())

    async def export_end(self, volume, export_path):
        """Finish an export."""
        volume = self.get_volume(volume)
        await qubes.utils.coro_maybe(volume.export_end(export_path))

    async def import_data(self, volume, size):
        """Start an import of *size* bytes; return the path to write."""
        volume = self.get_volume(volume)
        if size is None:
            size = volume.size
        return await qubes.utils.coro_maybe(volume.import_data(size))

    async def import_data_end(self, volume, success):
        """Finish an import."""
        volume = self.get_volume(volume)
        return await qubes.utils.coro_maybe(
            volume.import_data_end(success=success)
        )

    async def import_volume(self, dst_volume, src_volume):
        """Copy a volume; return the driver's result."""
        if src_volume.is_running() and src_volume.snapshots_disabled:
            raise StoragePoolException(
                f"Volume {src_volume.vid} has to be stopped first"
            )
        result = await qubes.utils.coro_maybe(
            dst_volume.import_volume(src_volume)
        )
        if not IS_R43:
            await self.vm.fire_event_async(
                "domain-import-volume", name=dst_volume.name, source=src_volume
            )
        return result
