# SPDX-License-Identifier: BSD-2-Clause
"""The system around a driver, as users and the daemon's life shape it.

Every function that changes something saves the XML file, as the Admin API
does; errors are those the API would deliver.
"""

import os
import shutil
import subprocess
import tempfile

import qubes
import qubes.app
import qubes.exc
import qubes.storage
import qubes.utils

SAFE = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
)


def register_driver(name, cls):
    """Register the driver *name*, which no package provides."""
    group = qubes.storage.STORAGE_ENTRY_POINT
    qubes.utils.register_entry_point(group, name, cls)


def new_app(store, hold_devices=False):
    """Return a new system with dom0 and the pool "varlibqubes"."""
    hypervisor = qubes.app.Hypervisor(hold_devices)
    app = qubes.Qubes(store, load=False, hypervisor=hypervisor)
    app.load_initial_values()
    app.save()
    return app


async def restart(app, save=False):
    """Return a new daemon with the XML file and domains of the old one.

    The old one is killed, or, with save=True, told to end.
    """
    if save:
        app.save()
    app = qubes.Qubes(app.store, hypervisor=app.vmm.hypervisor)
    await app.stop_storage()
    return app


def offline_copy(app):
    """Return the second set of objects that a backup makes in the daemon.

    All its qubes seem halted, and it is silent after its load.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = shutil.copy(app.store, os.path.join(folder, "qubes.xml"))
        copy = qubes.Qubes(store, offline_mode=True)
    copy.events_enabled = False
    for vm in copy.domains:
        vm.events_enabled = False
    return copy


async def add_pool(app, name, driver, **options):
    """Check the options (texts) as admin.pool.Add does, add the pool."""
    if not set(name) <= SAFE:
        raise qubes.exc.ProtocolError("bad character in the pool name")
    allowed = qubes.storage.driver_parameters(driver)
    if set(options) - set(allowed):
        raise qubes.exc.ProtocolError("Unexpected driver options found")
    missing = [key for key in allowed if allowed[key] and key not in options]
    if missing:
        raise qubes.exc.QubesException(
            "missing required driver options: " + " ".join(missing)
        )
    if name in app.pools:
        raise qubes.exc.QubesPoolInUseError(pool_name=name)
    texts = {key: str(value) for key, value in options.items()}
    pool = await app.add_pool(name=name, driver=driver, **texts)
    app.save()
    return pool


async def remove_pool(app, name):
    """admin.pool.Remove."""
    await app.remove_pool(name)
    app.save()


def pool_info(app, name):
    """Return the results of admin.pool.Info and UsageDetails in one dict."""
    pool = app.pools[name]
    info = dict(pool.config)
    info.update({"size": pool.size, "usage": pool.usage})
    try:
        info["included_in"] = pool.included_in(app)
    except NotImplementedError:
        pass
    info.update(pool.usage_details)
    return {key: str(val) for key, val in info.items() if val is not None}


async def create_vm(
    app, klass, name, label="red", pool=None, pools=None, **properties
):
    """admin.vm.Create or CreateInPool; a failure leaves no qube."""
    if name in app.domains:
        raise qubes.exc.QubesVMAlreadyExistsError(f"Qube exists: {name}")
    if pool:
        pool = app.get_pool(pool)
    pools = {key: app.get_pool(val) for key, val in (pools or {}).items()}
    vm = app.add_new_vm(klass, name=name, label=label, **properties)
    vm.tags.add("created-by-dom0")
    try:
        await vm.create_on_disk(pool=pool, pools=pools)
    except BaseException:
        del app.domains[vm]
        raise
    app.save()
    return vm


async def remove_vm(vm):
    """admin.vm.Remove: what fails on disk is only logged."""
    app = vm.app
    async with vm.startup_lock:
        del app.domains[vm]
        try:
            await vm.remove_from_disk()
        except Exception:
            app.log.exception("Error while removing files of %s", vm.name)
    app.save()


async def clone_vm(src, name, pool=None):
    """qvm-clone: a new qube, then its persistent volumes one by one."""
    properties = {"label": src.label}
    for key in "template", "template_for_dispvms":
        if hasattr(src, key):
            properties[key] = getattr(src, key)
    vm = await create_vm(src.app, src.klass, name, pool=pool, **properties)
    vm.features.update(src.features)
    vm.tags.update(src.tags)
    for volume in list(vm.volumes.values()):
        if volume.save_on_stop:
            await clone_volume(src, vm, volume.name)
    return vm


def volume_info(vm, name):
    """Return the result of admin.vm.volume.Info as a dict of texts."""
    volume = vm.volumes[name]
    keys = "pool vid size usage rw source path save_on_stop snap_on_start"
    info = {}
    for key in [*keys.split(), "revisions_to_keep", "ephemeral"]:
        value = getattr(volume, key)
        info[key] = "" if value is None else str(value)
    try:
        info["is_outdated"] = str(volume.is_outdated())
    except NotImplementedError:
        pass
    return info


def list_snapshots(vm, name):
    """admin.vm.volume.ListSnapshots: revision ids, the oldest first."""
    revisions = vm.volumes[name].revisions
    return sorted(revisions, key=revisions.__getitem__)


async def revert(vm, name, revision):
    """admin.vm.volume.Revert."""
    if not set(revision) <= SAFE | {":"}:
        raise qubes.exc.ProtocolError("bad character in the revision")
    volume = vm.volumes[name]
    if revision not in volume.revisions:
        raise qubes.exc.QubesVolumeRevisionNotFoundError()
    await qubes.utils.coro_maybe(volume.revert(revision))
    vm.app.save()


async def resize(vm, name, size):
    """admin.vm.volume.Resize."""
    try:
        await vm.storage.resize(name, size)
    finally:
        vm.app.save()


async def clone_volume(src_vm, dst_vm, name):
    """admin.vm.volume.CloneFrom and CloneTo; the result replaces ours."""
    app = dst_vm.app
    source = src_vm.volumes[name]
    if str(source.pool) not in app.pools:
        raise qubes.exc.QubesPoolNotFoundError()
    if source not in app.pools[str(source.pool)].volumes:
        raise qubes.exc.QubesVolumeNotFoundError()
    dst_vm.volumes[name] = await dst_vm.storage.import_volume(
        dst_vm.volumes[name], source
    )
    app.save()
    return dst_vm.volumes[name]


async def clear(vm, name):
    """admin.vm.volume.Clear: an import of nothing into a zeroed device."""
    size = vm.volumes[name].size
    path = await vm.storage.import_data(name, size)
    vm.fire_event("domain-volume-import-begin", volume=name, size=size)
    with open(path, "ab"):
        os.utime(path)
    await _import_end(vm, name, True)
    vm.app.save()


async def import_file(vm, name, source, size=None):
    """admin.vm.volume.Import, or ImportWithSize if *size* is given.

    Zero blocks of *source* are not written, and its length has to be the
    size announced.
    """
    if not vm.is_halted():
        raise qubes.exc.QubesVMNotHaltedError(vm)
    path = await vm.storage.import_data(name, size)
    if " " in path:
        raise qubes.exc.ProtocolError("Path contains whitespace")
    if size is None:
        size = vm.volumes[name].size
    vm.fire_event("domain-volume-import-begin", volume=name, size=size)
    length = os.path.getsize(source)
    error = "" if length == size else f"{length} bytes instead of {size}"
    done = await qubes.utils.run_program(
        *("dd", f"if={source}", f"of={path}", "bs=128K", f"count={size}"),
        "iflag=count_bytes,fullblock",
        "conv=sparse,notrunc,nocreat,fdatasync",
        check=False,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if done.returncode:
        error = "error copying data"
    await _import_end(vm, name, not error)
    if error:
        raise qubes.exc.QubesException(f"Data import failed: {error}")


async def _import_end(vm, name, success):
    event = "domain-volume-import-end"
    try:
        await vm.storage.import_data_end(name, success=success)
    except BaseException:
        vm.fire_event(event, volume=name, success=False)
        raise
    vm.fire_event(event, volume=name, success=success)


async def backup_volume(vm, name):
    """Return the bytes of a volume in a backup."""
    path = await vm.storage.export(name)
    try:
        with open(path, "rb") as exported:
            return exported.read()
    finally:
        await vm.storage.export_end(name, path)


def set_revisions_to_keep(vm, name, value):
    """admin.vm.volume.Set.revisions_to_keep."""
    vm.storage.set_revisions_to_keep(name, value)
    vm.app.save()


def set_ephemeral(vm, name, value):
    """admin.vm.volume.Set.ephemeral."""
    vm.volumes[name].ephemeral = qubes.property.bool(None, None, value)
    vm.app.save()
