# SPDX-License-Identifier: BSD-2-Clause
"""Operations during a stop of the qube, or after an import whose client died."""

import asyncio
import os
import time
import types
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver import halting

from ..support.zpools import MIB, open_device, read, write

pytestmark = pytest.mark.side_a


class Qube:
    """The attributes of a qube and its application that the driver reads."""

    def __init__(self, *volumes):
        self.power_state = "Running"
        self.startup_lock = asyncio.Lock()
        self.features = {}
        self.vmm = types.SimpleNamespace(offline_mode=False)
        self.app = self
        self.domains = {volumes[0].qube: self}
        for volume in volumes:
            volume.app = self

    def get_power_state(self):
        return self.power_state


def size_of(path):
    with open_device(path, os.O_RDONLY) as file:
        return file.seek(0, os.SEEK_END)


@pytest.fixture
def ended(lab):
    """Return a volume that was written to and whose qube has just halted."""
    volume = lab.private(content=b"one", revisions_to_keep=3)
    lab.session(volume, b"two")
    qube = Qube(volume)
    lab.start(volume)
    write(volume.path, b"three")
    qube.power_state = "Halted"
    return volume


async def stop_later(volume):
    await asyncio.sleep(0.3)
    await volume.stop()
    # qubesd removes it when all volumes of the qube have been stopped
    await asyncio.sleep(0.3)
    Path(volume.state_file).unlink(missing_ok=True)


def meanwhile(lab, volume, operation):
    """Run *operation* while a stop is in progress, and return its result."""

    async def both():
        stop = asyncio.create_task(stop_later(volume))
        try:
            return await operation
        finally:
            await stop

    return lab.run(both())


def test_operations_wait_for_a_stop_in_progress(lab, ended):
    # the newest listed revision is the state at the start of the session
    newest = list(ended.revisions)[-1]
    meanwhile(lab, ended, ended.revert(newest))
    assert lab.content(ended) == b"two"
    assert list(ended.revisions)[-1] > newest

    for operation in "export", "resize", "import", "clone", "start":
        lab.start(ended)
        ended.app.power_state = "Running"
        write(ended.path, operation.encode())
        ended.app.power_state = "Halted"
        match operation:
            case "export":
                path = meanwhile(lab, ended, ended.export())
                assert read(path) == b"export"
                lab.run(ended.export_end(path))
            case "resize":
                meanwhile(lab, ended, ended.resize(2 * MIB))
                assert lab.content(ended) == b"resize"
            case "import":
                meanwhile(lab, ended, ended.import_data(MIB))
                lab.run(ended.import_data_end(False))
                assert lab.content(ended) == b"import"
            case "clone":
                copy = lab.private("copy")
                meanwhile(lab, ended, copy.import_volume(ended))
                assert lab.content(copy) == b"clone"
            case "start":
                app = lab.clone_of(ended)
                meanwhile(lab, ended, app.start())
                assert read(app.path) == b"start"
                lab.stop(app)


def test_operations_do_not_wait_for_a_running_qube(lab, ended):
    began = time.monotonic()
    for state, offline in (("Running", False), ("Halted", True)):
        ended.app.power_state = state
        ended.app.vmm.offline_mode = offline
        assert not ended.is_stopping()
        for operation in (
            ended.revert,
            lambda: ended.import_data(MIB),
            lambda: ended.import_volume(ended),
            lambda: ended.resize(1 * MIB),
        ):
            with pytest.raises(StoragePoolException, match="running|runs"):
                lab.run(operation())
        assert "r3" not in list(ended.revisions)
    assert time.monotonic() - began < halting.LIMIT / 2
    lab.stop(ended)


def test_wait_for_a_stop_times_out(lab, ended, monkeypatch):
    monkeypatch.setattr(halting, "LIMIT", 0.3)
    with pytest.raises(StoragePoolException, match="the qube is running"):
        lab.run(ended.revert())
    lab.stop(ended)


def test_revert_refuses_a_starting_qube(lab, ended):
    """Another volume starts slowly; qubesd has not yet recorded the start."""
    lab.stop(ended)

    async def starting():
        async with ended.app.startup_lock:
            await ended.start()
            with pytest.raises(StoragePoolException, match="running"):
                await ended.revert()
        await ended.stop()

    lab.run(starting())


def test_resize_of_a_stopped_root_clone_is_refused(lab):
    template = lab.private("tmpl", b"v1", name="root")
    root = lab.clone_of(template)
    with pytest.raises(StoragePoolException, match="resize tmpl:root SIZE"):
        lab.run(root.resize(8 * MIB))
    assert root.size == 4 * MIB
    lab.start(root)
    lab.run(root.resize(8 * MIB))
    assert root.size == size_of(root.path) == 8 * MIB
    lab.stop(root)
    assert root.size == 4 * MIB
    lab.start(root)
    assert root.size == size_of(root.path) == 4 * MIB
    lab.stop(root)
    lab.run(template.resize(8 * MIB))
    lab.start(root)
    assert root.size == size_of(root.path) == 8 * MIB
    lab.stop(root)


def dead_import(lab, volume):
    """Start an import and write to it, as a client that is killed then."""
    path = lab.run(volume.import_data(MIB))
    write(path, b"half")


async def clear(volume):
    """Clear a volume as core-admin's admin.vm.volume.Clear does."""
    path = await volume.import_data(volume.size)
    Path(path).touch()
    await volume.import_data_end(True)


def test_operations_work_after_an_abandoned_import(lab):
    volume = lab.private(content=b"one", revisions_to_keep=3)
    dead_import(lab, volume)
    lab.run(clear(volume))
    assert lab.content(volume) == b""
    dead_import(lab, volume)
    lab.run(volume.revert())
    assert lab.content(volume) == b"one"
    source = lab.private("source", b"source")
    dead_import(lab, volume)
    lab.run(volume.import_volume(source))
    assert lab.content(volume) == b"source"
    with pytest.raises(StoragePoolException, match="no import"):
        lab.run(volume.import_data_end(True))
    dead_import(lab, volume)
    dead_import(lab, volume)
    lab.run(volume.import_data_end(True))
    assert lab.content(volume) == b"half"
    dead_import(lab, volume)
    lab.session(volume, b"started")
    dead_import(lab, volume)
    lab.run(volume.remove())
    lab.run(source.remove())
    assert lab.datasets() == ["vm"]


def test_operations_are_refused_while_an_import_is_written(lab):
    volume = lab.private(content=b"one", revisions_to_keep=3)
    path = lab.run(volume.import_data(MIB))
    with open_device(path, os.O_RDWR):
        for operation in (
            lambda: clear(volume),
            volume.revert,
            lambda: volume.import_volume(volume),
            volume.start,
        ):
            with pytest.raises(
                StoragePoolException, match="an import into this volume"
            ):
                lab.run(operation())
    lab.run(volume.import_data_end(False))
