# SPDX-License-Identifier: BSD-2-Clause
"""Checks of properties on disk: at first use, at a start, when a pool is added."""

import asyncio
import time

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.store import naming, policy
from qubes_storage_zfs.zfs import keys

from ..support.counting import calls
from ..support.lab import EncryptedLab, Lab
from ..support.prompts import PASSPHRASE
from ..support.tool import qvm_zfs
from ..support.zpools import MIB, export_zpool, sh

pytestmark = pytest.mark.side_b

FLAG = naming.UDEV_FLAG
#: below the qubes root, property, value; a mount point is set without mounting
WRONG = [
    ("work/private", "volmode", "full"),
    ("work/private", "snapdev", "visible"),
    ("work/private", FLAG, "false"),
    ("work", "mountpoint", "/tmp/policy-test"),
    ("", "snapdev", "visible"),
    ("", FLAG, "no"),
]


@pytest.fixture(params=[Lab, EncryptedLab])
def either(request, zpool, person):
    return request.param(zpool)


def place(lab, below):
    return f"{lab.pool.qubes_root}/{below}".rstrip("/")


def change(lab, below, name, value):
    sh("zfs", "set", "-u", f"{name}={value}", place(lab, below))


def repair(lab, below, name):
    if below:
        sh("zfs", "inherit", name, place(lab, below))
    else:
        value = policy.ROOT_SETTINGS[name]
        sh("zfs", "set", f"{name}={value}", lab.pool.qubes_root)


def refused(lab, work):
    """Return the message of the refusal, which must come within 20 s."""
    begin = time.monotonic()
    with pytest.raises(StoragePoolException) as caught:
        lab.run(work)
    assert time.monotonic() - begin < 20
    text = str(caught.value)
    assert text.isprintable() and len(text) < 700
    return text


def test_first_use_checks_all_datasets_below_the_qubes_root(either):
    lab = either
    lab.private(content=b"data")
    other = lab.private("other", content=b"other")
    for below, name, value in WRONG:
        change(lab, below, name, value)
        lab.restart()
        volume = lab.again(other)
        said = refused(lab, volume.start())
        assert f"{place(lab, below)} has {name}={value} instead of " in said
        command = f"inherit {name}" if below else f"set {name}="
        assert f"run 'sudo zfs {command}" in said
        assert name in refused(lab, volume.export())
        # stop() still works, and a repair needs no restart
        lab.run(volume.stop())
        repair(lab, below, name)
        assert lab.content(volume) == b"other"
    change(lab, "work/private", "volmode", "full")
    lab.restart()
    assert "volmode=full" in refused(lab, lab.again(other).import_data(MIB))
    assert lab.pool.size and len(lab.pool.list_volumes()) == 2
    lab.run(lab.again(other).remove())
    assert lab.datasets("volume") == [
        name for name in lab.datasets("volume") if "other" not in name
    ]


def test_encrypted_pool_must_have_one_encryption_root(zpool, person):
    lab = EncryptedLab(zpool)
    volume = lab.private(content=b"data")
    plain = f"{lab.container}/plain"
    sh("zfs", "create", "-u", "-o", "encryption=off", plain)
    # an empty dataset would be collected first
    sh("zfs", "create", "-u", f"{plain}/files")
    lab.restart()
    said = refused(lab, lab.again(volume).start())
    assert f"{plain} has encryptionroot=- instead of {lab.container}," in said
    sh("zfs", "destroy", "-r", plain)
    sh("zfs", "set", "keylocation=file:///etc/passwd", lab.container)
    lab.run(keys.unload(lab.container))
    assert "keylocation" in refused(lab, lab.again(volume).export())
    assert person.asked == []
    sh("zfs", "set", "keylocation=prompt", lab.container)
    assert lab.content(lab.again(volume)) == b"data"
    assert person.asked == ["unlock"]


def test_first_use_runs_one_check_per_pool(lab, make_lab):
    volume = lab.private(content=b"data")
    bad = make_lab()
    broken = bad.private(content=b"data")
    change(bad, "work/private", "volmode", "full")
    for item in lab, bad:
        item.restart()
    again, broken = lab.again(volume), bad.again(broken)
    with calls() as made:
        lab.run(again.start())
        lab.run(again.stop())
        lab.run(again.start())
        lab.run(again.stop())
    assert made.count("policy") == 1
    with calls() as made:
        refused(bad, broken.start())
        refused(bad, broken.start())
    assert made.count("policy") == 2


def test_pool_is_checked_again_after_an_import_of_its_zpool(away):
    lab = away
    volume = lab.private(content=b"data")
    lab.session(volume, b"more")
    with calls() as made:
        lab.session(volume, b"again")
        export_zpool("away")
        sh("zpool", "import", "-N", "-d", "/tmp", "away")
        lab.session(volume, b"last")
    assert made.count("policy") == 1


@pytest.mark.parametrize("below", ["work/private", "work", ""])
def test_start_refuses_properties_changed_after_first_use(lab, below):
    existing, fresh = lab.private(content=b"data"), lab.volatile()
    for name, value in (
        ("volmode", "none"),
        ("volmode", "full"),
        ("snapdev", "visible"),
        (FLAG, "false"),
    ):
        change(lab, below, name, value)
        dataset = place(lab, below if below == "work/private" else "work")
        said = refused(lab, existing.start())
        assert " has " + f"{name}={value} instead of " in said, dataset
        assert "udev" not in said.replace(FLAG, "")
        if below != "work/private":
            # the volume does not exist yet and would inherit the property
            assert f"{name}={value}" in refused(lab, fresh.start())
        repair(lab, below, name)
    lab.start(existing, fresh)
    lab.stop(existing, fresh)


def test_received_properties_are_checked(lab):
    volume = lab.private(content=b"data")
    source, target = f"{lab.container}/sent", f"{lab.pool.qubes_root}/work/got"
    sh("zfs", "create", "-s", "-V", "4M", "-o", "volmode=full", source)
    sh("zfs", "snapshot", f"{source}@x")
    sh("sh", "-c", f"zfs send -p {source}@x | zfs receive -u {target}")
    lab.restart()
    said = refused(lab, lab.again(volume).start())
    assert f"{target} has volmode=full instead of dev," in said


def test_values_from_disk_are_escaped_and_shortened(lab):
    volume = lab.private(content=b"data")
    change(lab, "work/private", FLAG, "true\n\x1b[2Jx\t" + "y" * 4000)
    lab.restart()
    said = refused(lab, lab.again(volume).start())
    assert f"{FLAG}=true\\x0a\\x1b[2Jx\\x09yyy" in said
    sh("zfs", "inherit", FLAG, place(lab, "work/private"))
    mark = f"{naming.CLAIM}=other\n\x1b[2J" + "z" * 4000
    sh("zfs", "set", mark, lab.container)
    said = refused(lab, lab.again(volume).start())
    assert "belongs to the pool other\\x0a\\x1b[2Jzzz" in said


@pytest.mark.parametrize("below, name, value", WRONG[:4])
def test_add_refuses_unsafe_properties(either, person, below, name, value):
    lab = either
    lab.private(content=b"data")
    change(lab, below, name, value)
    if lab.kind.is_encrypted:
        lab.run(keys.unload(lab.container))
    said = refused(lab, lab.restart().setup())
    assert f"Cannot add the pool {lab.name}: {place(lab, below)} has" in said
    assert person.asked == []
    repair(lab, below, name)
    lab.run(lab.restart().setup())


def test_container_with_too_many_datasets_is_refused(lab, monkeypatch):
    volume = lab.private(content=b"data")
    monkeypatch.setattr(policy, "LIMIT", 2)
    lab.restart()
    said = refused(lab, lab.again(volume).start())
    assert "number of datasets=more instead of at most 2," in said


def test_concurrent_tasks_share_one_check(lab):
    volumes = [lab.private(f"q{n}", content=b"data") for n in range(3)]
    lab.restart()
    volumes = [lab.again(volume) for volume in volumes]

    async def together():
        paths = await asyncio.gather(*(v.export() for v in volumes))
        for volume, path in zip(volumes, paths, strict=True):
            await volume.export_end(path)

    with calls() as made:
        lab.run(together())
    assert made.count("policy") == 1


@pytest.mark.parametrize("operation", ["unlock", "passwd"])
def test_tool_loads_no_key_of_a_pool_with_unsafe_properties(zpool, operation):
    """Loading a key creates device nodes."""
    lab = EncryptedLab(zpool)
    lab.private(content=b"data")
    change(lab, "work/private", "volmode", "full")
    lab.run(keys.unload(lab.container))
    given = PASSPHRASE + b"\n" + b"another one\n" * 2
    code, out, err = qvm_zfs(operation, lab.name, given=given)
    assert (code, out) == (1, "") and "has volmode=full instead of dev" in err
    assert lab.is_locked()
    repair(lab, "work/private", "volmode")
    assert qvm_zfs(operation, lab.name, given=given)[0] == 0
