# SPDX-License-Identifier: BSD-2-Clause
"""Error messages name a condition that prevents a start, and the remedy."""

import pytest
from qubes.storage import StoragePoolException

from qubes_storage_zfs.driver.view import Unreadable
from qubes_storage_zfs.tools import common
from qubes_storage_zfs.zfs import keys

from ..support.lab import Lab, configure
from ..support.mapped import Mapped
from ..support.prompts import PASSPHRASE
from ..support.tool import qvm_zfs, status
from ..support.zpools import MIB, sh

pytestmark = pytest.mark.side_b


@pytest.fixture(autouse=True)
def no_qubes_xml():
    yield
    common.QUBES_XML.unlink(missing_ok=True)


@pytest.fixture
def disk():
    mapped = Mapped("fails")
    yield mapped
    mapped.end()


def refused(lab, *operations):
    """Assert that all operations fail for one reason; return the reason."""
    found = set()
    for operation in operations:
        with pytest.raises(StoragePoolException) as caught:
            lab.run(operation())
        found.add(str(caught.value).partition(": ")[2])
    (why,) = found
    return why


def unreadable(volume):
    (line,) = volume.revisions
    assert volume.usage == 0 and volume.path is None
    return line


def notes(lab):
    """Return state and notes of `qvm-zfs status`; compare both formats."""
    configure(lab.pool.config)
    found = status(lab)
    for note in found["notes"]:
        assert f"{lab.name}: {note}\n" in qvm_zfs("status")[1]
    return found["state"], *found["notes"]


def test_read_only_zpool_is_reported(disk):
    lab = Lab("fails")
    volume = lab.private("qube", b"one")
    lab.session(volume, b"two")
    known, unknown = lab.again(volume), lab.again(volume)
    assert list(known.revisions) == ["r1", "r2"]
    disk.import_again("-o", "readonly=on")
    why = refused(lab, volume.start, volume.export, volume.revert)
    assert "fails is imported read-only" in why
    assert "sudo zpool export fails" in why and "qvm-zfs attach" in why
    assert [unreadable(unknown)] == list(Unreadable(why))
    assert list(known.revisions) == ["r1", "r2"]
    assert notes(lab) == ("read-only", why)
    lab.run(volume.stop())
    disk.import_again()
    assert list(unknown.revisions) == ["r1", "r2"]
    lab.session(volume, b"three")


def test_suspended_zpool_is_reported(disk):
    lab = Lab("fails")
    volume = lab.private("qube", b"one")
    unknown = lab.again(volume)
    usage = lab.pool.usage
    disk.fail()
    try:
        why = refused(lab, volume.start, volume.export)
        assert "fails is suspended" in why and "sudo zpool clear fails" in why
        assert [unreadable(unknown)] == list(Unreadable(why))
        assert lab.pool.usage == usage
        assert notes(lab) == ("suspended", why)
        lab.run(volume.stop())
    finally:
        disk.mend()
    assert list(unknown.revisions) == ["r1"]
    lab.session(volume, b"two")


def test_operations_refuse_a_readonly_dataset(lab):
    root = lab.private("tmpl", b"v1", name="root")
    volume = lab.private("qube", b"one")
    app, volatile = lab.clone_of(root), lab.volatile("new")
    for where in lab.container, lab.pool.qubes_root:
        sh("zfs", "set", "readonly=on", where)
        why = refused(
            lab,
            volume.start,
            app.start,
            volatile.start,
            lambda: volume.import_data(MIB),
        )
        assert why.startswith(f"{where} has readonly=on")
        assert f"sudo zfs set readonly=off {where}" in why
        assert notes(lab) == ("available", why)
        sh("zfs", "set", "readonly=off", where)
    sh("zfs", "set", "readonly=on", volume.dataset)
    assert refused(lab, volume.start).startswith(f"{volume.dataset} has")
    lab.start(app, volatile)
    lab.stop(app, volatile)
    sh("zfs", "set", "readonly=off", volume.dataset)
    lab.session(volume, b"two")
    assert notes(lab) == ("available",)


def test_raw_key_is_reported(safe, person, tmp_path):
    lab = safe
    volume = lab.private(content=b"one")
    file = tmp_path / "raw.key"
    file.write_bytes(bytes(range(32)))
    raw = ("-o", "keyformat=raw", "-o", f"keylocation=file://{file}")
    sh("zfs", "change-key", *raw, lab.container)
    lab.run(keys.unload(lab.container))
    why = refused(lab, volume.start, volume.export)
    assert "keyformat=raw" in why and "sudo zfs change-key" in why
    assert notes(lab) == ("locked", why)
    for word in "unlock", "passwd":
        given = PASSPHRASE + b"\n"
        code, _, err = qvm_zfs(word, lab.name, given=given)
        assert code == 1 and why in err
    assert person.asked == []
    # follow the message
    sh("zfs", "load-key", lab.container)
    lab.session(volume, b"two")
