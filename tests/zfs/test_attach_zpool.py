# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs attach: properties and names of zpools, and zpools without a pool."""

import os

import pytest
from qubes.storage import StoragePoolException

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.tools import main
from qubes_storage_zfs.zfs import commands, importexport
from qubes_storage_zfs.zfs.importexport import ImportableZpool

from ..support.lab import configure
from ..support.sticks import INHIBIT, change, guid, no_node_appears, prop
from ..support.tool import qvm_zfs, refused
from ..support.zpools import export_zpool, sh

pytestmark = pytest.mark.side_a

OTHERS = {
    "failmode": "panic",
    "autotrim": "off",
    "autoreplace": "on",
    "autoexpand": "on",
}


def test_attach_resets_the_properties_of_the_zpool(stick, disks):
    for name, value in OTHERS.items():
        sh("zpool", "set", f"{name}={value}", "stick")
    export_zpool("stick")
    assert qvm_zfs("attach", stick.name)[0] == 0
    assert {n: prop(n) for n in OTHERS} == commands.ZPOOL_PROPERTIES
    assert prop("cachefile") == "none"


def test_detach_warns_of_properties_that_attach_refuses(stick):
    sh("zfs", "set", "volmode=full", stick.pool.qubes_root)
    code, _, err = qvm_zfs("detach", stick.name)
    assert code == 0 and "is detached, but 'qvm-zfs attach' will" in err
    assert "volmode=full" in err
    assert "volmode=full" in refused("attach", stick.name)


def test_driver_refuses_another_zpool_of_the_same_name(stick, disks):
    """The other zpool was imported, e.g. at boot, and has the same claim."""
    volume = stick.private()
    in_qubes_xml = {n: str(value) for n, value in stick.pool.config.items()}
    in_qubes_xml.pop("driver")
    export_zpool("stick")
    disks.take_away("a")
    disks.zpool("b")
    mark = f"{naming.CLAIM}={stick.name}"
    sh("zfs", "create", "-p", stick.pool.qubes_root)
    sh("zfs", "set", mark, stick.container)
    stick.restart()
    stick.pool = stick.kind(**in_qubes_xml)
    with pytest.raises(
        StoragePoolException, match="connect the pool's own disk"
    ):
        stick.run(stick.again(volume).start())
    stick.run(stick.again(volume).stop())


def attach_here(capsys, *arguments):
    """Run qvm-zfs attach in this process, so that a test can interfere."""
    code = main.main(["attach", *arguments])
    return code, capsys.readouterr().err


def test_attach_exports_a_zpool_with_wrong_properties(
    stick, monkeypatch, capsys
):
    sh("zpool", "set", "failmode=panic", "stick")
    export_zpool("stick")
    run = commands.run

    async def without_properties(program, *words, **how):
        if program == "zpool" and "failmode=continue" in words:
            at = words.index("failmode=continue")
            words = words[: at - 1] + words[at + 1 :]
        return await run(program, *words, **how)

    monkeypatch.setattr(commands, "run", without_properties)
    code, said = attach_here(capsys, stick.name)
    assert code == 1 and "stick has failmode=panic instead of continue," in said
    assert importexport.guid("stick") is None


def test_attach_exports_a_zpool_imported_under_another_name(
    stick, monkeypatch, capsys
):
    """The zpool is renamed between the search and the import."""
    listed = importexport.search_devices

    async def then_renamed(paths):
        found = await listed(paths)
        sh("zpool", "import", "-N", "-d", "/dev/mapper", "stick", "renamed")
        export_zpool("renamed")
        return found

    export_zpool("stick")
    monkeypatch.setattr(importexport, "search_devices", then_renamed)
    try:
        with no_node_appears():
            INHIBIT.write_text("1")
            code, said = attach_here(capsys, stick.name)
        assert code == 1 and "was imported with the name renamed" in said
        assert (
            importexport.guid("renamed") is importexport.guid("stick") is None
        )
    finally:
        INHIBIT.write_text("0")


def test_attach_refuses_a_guid_with_two_names(stick, monkeypatch, capsys):
    right = guid()
    export_zpool("stick")
    listed = importexport.search_devices

    async def twice(paths):
        found = await listed(paths)
        other = ImportableZpool("evil\x1b", right, "ONLINE", "", ())
        return [*found, other]

    monkeypatch.setattr(importexport, "search_devices", twice)
    code, said = attach_here(capsys, stick.name)
    assert code == 1 and right in said and "evil" in said and "stick" in said
    assert "\x1b" not in said and importexport.guid("stick") is None


def test_attach_imports_a_zpool_without_a_pool(stick, disks, tmp_path):
    """This happens after a reinstallation of dom0."""
    volume = stick.private(content=b"data")
    where = tmp_path / "mounted"
    mounted = f"mountpoint={where}"
    sh("zfs", "create", "-u", "-o", mounted, "stick/files")
    said = refused("attach", "--zpool", "stick")
    assert (
        f"qubesd already uses the zpool stick for the pool {stick.name};"
        in said
    )
    export_zpool("stick")
    configure()
    assert "was not found on the disks" in refused(
        "attach", "--zpool", "nowhere"
    )
    assert "is a dataset, not a zpool" in refused("attach", "--zpool", "a/b")
    with no_node_appears():
        code, out, err = qvm_zfs("attach", "--zpool", "stick")
        assert (code, err) == (0, "") and out.endswith("stick is attached\n")
    assert prop("cachefile") == "none" and not importexport.mounted("stick")
    assert prop("failmode") == "continue"
    assert (
        qvm_zfs("attach", "--zpool", "stick")[1]
        == "stick is already attached\n"
    )
    sh("zfs", "mount", "stick/files")
    assert not where.exists()
    sh("zfs", "unmount", "stick/files")
    # a pool that is added again has its devices
    stick.run(stick.restart().setup())
    assert os.path.exists(volume.path)
    assert stick.content(stick.again(volume)) == b"data"
    one = guid()
    export_zpool("stick")
    disks.zpool("b")
    other = guid()
    export_zpool("stick")
    said = refused("attach", "--zpool", "stick")
    assert one in said and other in said
    assert importexport.guid("stick") is None


def test_forged_property_value_hides_no_other_property(stick):
    """A parser of the output of zfs(8) would take the value for lines of it."""
    volume = stick.private(content=b"data").dataset
    forged = f"true\tlocal\n{volume}\tvolmode\tdev"
    change(
        stick,
        ["zfs", "set", "volmode=full", volume],
        ["zfs", "set", f"{naming.UDEV_FLAG}={forged}", volume],
    )
    with no_node_appears():
        said = refused("attach", stick.name)
    assert f"{volume} has volmode=full instead of dev," in said
    assert importexport.guid("stick") is None
