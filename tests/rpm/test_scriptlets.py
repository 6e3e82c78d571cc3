# SPDX-License-Identifier: BSD-2-Clause
"""Messages, effects and refusals of installation, upgrade and removal."""

import pytest

from .world import (
    NAME,
    NEWER,
    POLICY,
    QUBES_XML,
    SITE,
    Root,
    binary_packages,
    dom0,
)

USED = (
    "<qubes><pools>"
    '<pool driver="zfs_zvol" name="tank" container="tank/qubes"/>'
    "</pools></qubes>"
)


@pytest.fixture
def root(installed, packages) -> Root:
    """Return a dom0 with this version of the packages and no qubes.xml."""
    if not installed.has(NAME):
        installed.rpm("-U", "--replacepkgs", *binary_packages(packages))
    (installed / QUBES_XML).unlink(missing_ok=True)
    return installed


def test_an_installation_prints_the_next_step(installed) -> None:
    assert installed.first.splitlines() == [
        "qubes-storage-zfs: to load the drivers into qubesd, run",
        "    sudo modprobe zfs && sudo systemctl restart qubesd",
        "Running qubes are not affected.",
    ]
    assert installed.ran() == []


def test_an_upgrade_keeps_pools_and_settings(packages, newer, empty) -> None:
    """An upgrade does not restart qubesd either."""
    empty.rpm("-i", *dom0(), *binary_packages(packages))
    empty.write(QUBES_XML, USED)
    empty.write(POLICY, "# mine\n")
    said = empty.rpm("-U", *binary_packages(newer))
    assert [line for line in said.splitlines() if "rpmnew" not in line] == [
        "qubes-storage-zfs: to load the new version into qubesd, run",
        "    sudo systemctl restart qubesd",
        "Running qubes are not affected.",
    ]
    assert empty.ran() == []
    assert empty.rpm("-q", "--qf", "%{VERSION}\n", NAME) == f"{NEWER}\n"
    assert (empty / QUBES_XML).read_text() == USED
    assert (empty / POLICY).read_text() == "# mine\n"
    infos = list((empty / SITE).glob("*.dist-info"))
    assert [info.name for info in infos] == [
        f"qubes_storage_zfs-{NEWER}.dist-info"
    ]


@pytest.mark.parametrize(
    "text, pools",
    [
        (USED, "tank"),
        (USED.replace('"', "'"), "tank"),
        (USED.replace("zfs_zvol", "zfs_encrypted"), "tank"),
        (USED.replace("=", " = ").replace(" ", "\n\t"), "tank"),
        ("<pool name='a' driver=\"zfs_zvol\" x=''></pool>", "a"),
        ("<!-- a -->\n<pool name='a' driver='zfs_zvol'/><!-- b -->", "a"),
        ("<pool zpool_name='b' driver='zfs_encrypted' name='a'/>\n", "a"),
        ("<pool driver='zfs_zvol' name='a'/>" * 2 + USED, "a a tank"),
        ("<pool driver='zfs_zvol'/>", "<pool driver='zfs_zvol'/>"),
        ("\xff" + USED, "tank"),
    ],
)
def test_removal_is_refused_while_a_pool_needs_it(text, pools, root) -> None:
    root.write(QUBES_XML, text)
    before = root.files()
    done = root.attempt("-e", NAME)
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "qubes-storage-zfs is not removed: /var/lib/qubes/qubes.xml lists pools"
        f" that need its drivers: {pools}",
        "Move or remove their qubes, run 'qvm-pool remove POOL' for each, then"
        " remove the package.",
        "Without the driver, qubesd does not start if a qube uses the pool; if"
        " no qube uses it, qubesd drops the pool.",
    ]
    assert root.has(NAME) and root.files() == before
    assert root.rpm("-V", NAME) == ""
    assert root.ran() == []


def test_removal_is_refused_if_qubes_xml_cannot_be_read(root) -> None:
    place = root / QUBES_XML
    place.mkdir()
    done = root.attempt("-e", NAME)
    place.rmdir()
    assert done.returncode != 0 and root.has(NAME)
    assert "which lists the pools that need it, cannot be read" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        USED.replace("zfs_zvol", "zfs"),
        USED.replace("zfs_zvol", "zfs_zvol2"),
        USED.replace("zfs_zvol", "my_zfs_zvol"),
        f"<qubes><!-- {USED}\n{USED} --></qubes>",
        "<pool driver='file' name='zfs_zvol' dir_path='/zfs_encrypted'/>",
        "<property name='x'>driver='zfs_zvol'</property>",
        "<pools driver='zfs_zvol'/>",
    ],
)
def test_a_removal_leaves_no_file(text, root) -> None:
    """All other files are kept."""
    others = root.files() - set(root.rpm("-ql", NAME).splitlines())
    if text is not None:
        root.write(QUBES_XML, text)
        others.add(f"/{QUBES_XML}")
    assert root.rpm("-e", NAME) == ""
    assert not root.has(NAME)
    assert root.files() == others
    assert root.ran() == []


def test_the_prompt_is_not_removed_alone(root) -> None:
    done = root.attempt("-e", f"{NAME}-askpassword")
    assert done.returncode != 0 and "is needed by" in done.stdout
    root.rpm("-e", NAME, f"{NAME}-askpassword")
    assert not root.has(f"{NAME}-askpassword")
