# SPDX-License-Identifier: BSD-2-Clause
"""Disposable volumes that no qube has any more."""

import asyncio
import types

import pytest

from qubes_storage_zfs.driver import discarded, events
from qubes_storage_zfs.store import holder, naming

from ..support.lab import Lab
from ..support.zpools import MIB, sh, value

pytestmark = pytest.mark.side_b


class Domains(list):
    """A list of qubes that can also be indexed by name."""

    def __getitem__(self, name):
        for qube in self:
            if qube.name == name:
                return qube
        raise KeyError(name)


class Qubes:
    """The part of qubesd's application object that the driver reads."""

    def __init__(self, *labs):
        self.vmm = types.SimpleNamespace(offline_mode=False)
        dom0 = types.SimpleNamespace(name="dom0", klass="AdminVM")
        self.domains = Domains([dom0])
        self.pools = {lab.pool.name: lab.pool for lab in labs}
        self.labs = labs
        for lab in labs:
            lab.vm = self.vm

    def vm(self, name):
        if any(qube.name == name for qube in self.domains):
            return self.domains[name]
        qube = types.SimpleNamespace(
            name=name,
            klass="AppVM",
            app=self,
            storage=True,
            volumes={},
            features={},
        )
        self.domains.append(qube)
        return qube

    def restart(self):
        for lab in self.labs:
            self.pools[lab.pool.name] = lab.restart()
            self.pools[lab.pool.name]._app = self

    def give(self, volume):
        """Assign the volume to its qube, as qubesd does."""
        self.vm(volume.qube).volumes[volume.name] = volume
        return volume


@pytest.fixture
def labs(zpool):
    return Lab(zpool), Lab(zpool)


@pytest.fixture
def app(labs):
    return Qubes(*labs)


def template(app, lab, name, content):
    volume = lab.private(name, content, name="root", size=8 * MIB)
    return app.give(volume)


def used_once(app, lab, source, qube="w1"):
    """Return a qube's root volume, prepared again after a session."""
    volume = app.give(lab.clone_of(source, qube))
    lab.session(volume, b"scribble")
    assert any(f"vm/{qube}/root." in x for x in lab.datasets())
    return volume


def change(lab, app, qube):
    """Fire the event and wait for its effects."""

    async def fire():
        events.template_changed(app.vm(qube))
        await asyncio.sleep(0)

    lab.run(fire())


def test_template_change_prepares_root_from_the_new_template(labs, app):
    lab, _ = labs
    old = template(app, lab, "old", b"v1")
    new = template(app, lab, "new", b"v2")
    before = used_once(app, lab, old).dataset
    app.give(lab.clone_of(new, "w1"))
    change(lab, app, "w1")
    # the driver has prepared the next start from the new template
    current = app.vm("w1").volumes["root"]
    assert "/vm/new/root@" in value(current.dataset, "origin")
    app.domains.remove(app.vm("old"))
    lab.run(old.remove())
    assert not any("vm/old" in x for x in lab.datasets())
    lab.start(current)
    assert not current.is_outdated() and current.dataset != before
    lab.stop(current)


def test_template_change_to_another_pool_destroys_the_old_root(labs, app):
    lab, other = labs
    old = template(app, lab, "old", b"v1")
    new = template(app, other, "new", b"v2")
    used_once(app, lab, old)
    used_once(app, lab, old, "disp")
    for qube in "w1", "disp":
        app.give(other.clone_of(new, qube))
    app.vm("w1").dispvms = [app.vm("disp")]
    change(lab, app, "w1")
    assert [x for x in lab.datasets() if "old" not in x] == ["vm"]
    assert {"vm/w1/root.1", "vm/disp/root.1"} < set(other.datasets())


def test_template_change_during_preparation_leaves_no_old_root(labs, app):
    lab, other = labs
    old = template(app, lab, "old", b"v1")
    new = template(app, other, "new", b"v2")
    again = template(app, lab, "again", b"v3")
    for at, source in (other, new), (lab, again):
        volume = used_once(app, lab, old)

        async def stop_and_change(volume=volume, at=at, source=source):
            await volume.start()
            await volume.stop()
            app.give(at.clone_of(source, "w1"))
            events.template_changed(app.vm("w1"))
            await asyncio.sleep(0)

        lab.run(stop_and_change())
        now = app.vm("w1").volumes["root"]
        assert now.source is source
        assert ("vm/w1" in lab.datasets()) == (at is lab)
        at.start(now)
        assert not now.is_outdated()
        at.stop(now)
        app.give(lab.clone_of(old, "w1"))
        change(lab, app, "w1")


def test_first_use_destroys_disposable_volumes_of_no_qube(labs, app):
    """This includes volumes that an older version left with their source."""
    lab, _ = labs
    old = template(app, lab, "old", b"v1")
    gone = used_once(app, lab, old)
    kept = used_once(app, lab, old, "w2")
    volatile = app.give(lab.volatile("w2"))
    lab.start(volatile)
    lab.stop(volatile)
    app.domains.remove(app.vm("w1"))
    app.restart()
    # a backup loads a second set of objects, which uses the pool first
    lab.pool._app = types.SimpleNamespace(
        vmm=types.SimpleNamespace(offline_mode=True), domains=[]
    )
    lab.run(lab.pool.first_use())
    assert "vm/w1/root.1" in lab.datasets()
    lab.pool._app = app
    lab.run(lab.pool.first_use())
    left = set(lab.datasets("volume"))
    assert left == {"vm/old/root", "vm/w2/root.1", "vm/w2/volatile"}
    assert gone.vid == "w1/root" and kept.vid == "w2/root"


def test_removal_of_a_qube_destroys_its_old_root_in_another_pool(labs, app):
    """The driver did not see the change of the template."""
    lab, other = labs
    old = template(app, lab, "old", b"v1")
    used_once(app, lab, old)
    new = template(app, other, "new", b"v2")
    mine = used_once(app, other, new)
    qube = app.vm("w1")
    app.domains.remove(qube)

    async def remove():
        events.removed(app, qube)
        await mine.remove()

    lab.run(remove())
    assert [x for x in lab.datasets() if "old" not in x] == ["vm"]
    assert [x for x in other.datasets() if "new" not in x] == ["vm"]


def test_collect_keeps_volumes_in_doubt(labs, app):
    lab, _ = labs
    old = template(app, lab, "old", b"v1")
    used_once(app, lab, old)
    stranger = app.vm("w1")
    app.domains.remove(stranger)
    loading = types.SimpleNamespace(
        name="w2", klass="AppVM", storage=None, volumes={}
    )
    before = lab.datasets()
    app.domains.append(loading)
    lab.run(discarded.collect(lab.pool, app))
    app.domains.remove(loading)
    app.vmm.offline_mode = True
    lab.run(discarded.collect(lab.pool, app))
    lab.run(discarded.collect(lab.pool, None))
    app.vmm.offline_mode = False
    sh("zfs", "set", f"{naming.CLAIM}=another", lab.container)
    lab.run(discarded.collect(lab.pool, app))
    sh("zfs", "set", f"{naming.CLAIM}={lab.name}", lab.container)
    app.domains.append(stranger)
    lab.run(discarded.collect(lab.pool, app))
    assert lab.datasets() == before
    app.domains.remove(stranger)
    lab.run(discarded.collect(lab.pool, app))
    assert not any("w1" in x for x in lab.datasets())


def test_collect_keeps_volumes_of_another_process(labs, app):
    lab, _ = labs
    old = template(app, lab, "old", b"v1")
    volume = used_once(app, lab, old)
    app.domains.remove(app.vm("w1"))
    mark = holder._identity(1)
    sh("zfs", "set", f"{naming.HOLDER}={mark}", volume.dataset)
    lab.run(discarded.collect(lab.pool, app))
    assert "vm/w1/root.1" in lab.datasets()
    # collect() never destroys a persistent volume
    assert "vm/old/root" in lab.datasets()
    app.domains.remove(app.vm("old"))
    lab.run(discarded.collect(lab.pool, app))
    assert "vm/old/root" in lab.datasets()
