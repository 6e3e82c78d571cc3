# SPDX-License-Identifier: BSD-2-Clause
"""Complete qubes, driven as by qubesd.

qubes.xml is saved and loaded, volumes of a qube start at once, and qubesd is
killed between operations.
"""

import asyncio
import os

import pytest
from qubes.exc import ProtocolError, QubesException

from qubes_storage_zfs.zfs import runtime

from ..support.zpools import MIB, read, sh, write

if "QUBES_CORE_ADMIN" in os.environ:
    pytest.skip(
        "drives the stand-in's app; a real one needs libvirt",
        allow_module_level=True,
    )

import hostapi


async def committed(vm, name):
    """Return the first bytes that a backup of the volume would read."""
    path = await vm.storage.export(name)
    try:
        return read(path, 8)
    finally:
        await vm.storage.export_end(name, path)


def test_three_qubes_run_from_creation_to_removal(app, zpool):
    container = f"{zpool}/{os.path.basename(os.path.dirname(app.store))}"
    asyncio.run(life(app, container))
    left = sh("zfs", "list", "-Hro", "name", container).split()
    assert left == [container, f"{container}/vm"]


async def life(app, container):
    pool = await hostapi.add_pool(
        app, "mine", "zfs_zvol", container=container, revisions_to_keep="3"
    )
    assert pool.revisions_to_keep == 3
    app.default_pool = pool
    tmpl = await hostapi.create_vm(app, "TemplateVM", "tmpl", pool="mine")
    image = os.path.join(os.path.dirname(app.store), "root.img")
    with open(image, "wb") as file:
        file.write(b"ROOT".ljust(4 * MIB, b"\0"))
    await hostapi.import_file(tmpl, "root", image, 4 * MIB)
    work = await hostapi.create_vm(
        app, "AppVM", "work", pool="mine", template="tmpl"
    )
    solo = await hostapi.create_vm(app, "StandaloneVM", "solo", pool="mine")
    hostapi.set_ephemeral(work, "volatile", True)

    await asyncio.gather(work.start(), solo.start())
    assert read(work.volumes["root"].path, 4) == b"ROOT"
    assert os.path.exists("/dev/mapper/vm-volatile-work-crypt@volatile")
    write(work.volumes["private"].path, b"work one")

    # qubesd dies; the qubes continue to run
    runtime.restart()
    app = await hostapi.restart(app)
    work, solo = app.domains["work"], app.domains["solo"]
    assert work.is_running() and work.volumes["private"].is_dirty()
    assert work.volumes["volatile"].ephemeral
    await asyncio.gather(work.shutdown(), solo.kill())
    assert not os.path.exists("/dev/mapper/vm-volatile-work-crypt@volatile")
    assert await committed(work, "private") == b"work one"

    # the qube dies while qubesd does not run
    await work.start()
    write(work.volumes["private"].path, b"work two")
    work.crash()
    runtime.restart()
    app = await hostapi.restart(app)
    work = app.domains["work"]
    assert list(hostapi.list_snapshots(work, "private")) == ["r1", "r2"]
    await hostapi.revert(work, "private", "r2")
    copy = await hostapi.clone_vm(work, "copy")
    assert await committed(copy, "private") == b"work one"

    # a backup process has its own objects
    offline = hostapi.offline_copy(app)
    assert await committed(offline.domains["work"], "private") == b"work one"

    await hostapi.clear(work, "private")
    assert await committed(work, "private") == b""
    larger = work.volumes["private"].size + 16 * MIB
    await hostapi.resize(work, "private", larger)
    assert work.volumes["private"].size == larger
    with pytest.raises(QubesException):
        await hostapi.remove_pool(app, "mine")
    with pytest.raises(ProtocolError):
        await hostapi.add_pool(app, "b", "zfs_zvol", colour="red")
    info = hostapi.pool_info(app, "mine")
    assert info["container"] == container and int(info["size"]) > 0
    for name in "copy", "work", "solo", "tmpl":
        await hostapi.remove_vm(app.domains[name])


def test_failed_create_leaves_no_dataset(app, zpool):
    async def story():
        pool = await hostapi.add_pool(
            app, "fails", "zfs_zvol", container=f"{zpool}/fails"
        )
        sh("zfs", "set", "qubes-storage-zfs:pool=other", pool.container)
        with pytest.raises(QubesException, match="belongs to the pool other"):
            await hostapi.create_vm(app, "StandaloneVM", "x", pool="fails")
        assert "x" not in app.domains
        sh("zfs", "set", "qubes-storage-zfs:pool=fails", pool.container)
        vm = await hostapi.create_vm(app, "StandaloneVM", "x", pool="fails")
        await hostapi.remove_vm(vm)

    asyncio.run(story())
    left = sh("zfs", "list", "-Hro", "name", f"{zpool}/fails").split()
    assert left == [f"{zpool}/fails", f"{zpool}/fails/vm"]
