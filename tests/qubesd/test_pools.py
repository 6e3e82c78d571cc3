# SPDX-License-Identifier: BSD-2-Clause
"""qvm-pool: the lists of drivers and pools, and refusals."""

import pytest

from .dom0 import IS_R43, datasets, zfs

ADD = ("qvm-pool", "add")


def test_both_drivers_are_listed_with_their_options(dom0):
    lines = dom0.run("qvm-pool", "drivers").splitlines()
    drivers = {line.split()[0]: line for line in lines}
    for option in ("container", "block_devices", "revisions_to_keep"):
        assert option in drivers["zfs_zvol"]
    for option in ("zpool_name", "unload_timeout", "ask_password_domain"):
        assert option in drivers["zfs_encrypted"]


@pytest.mark.parametrize(
    "options, says",
    [
        ((), "give either container=<dataset>"),
        (("container=tank/x", "block_devices=/dev/vdc"), "give either"),
        (("container=gone/x",), "the zpool gone is not imported"),
        (("container=tank/a b",), "does not support the dataset name 'a b'"),
        (("container=tank/x", "revisions_to_keep=-2"), "from -1 to 10000"),
        (("container=tank/x", "revisions_to_keep=few"), "from -1 to 10000"),
        (("container=tank/x", "ephemeral_volatile=maybe"), "True or False"),
        (("container=tank/x", "volblocksize=3k"), "power of two"),
        (("container=tank/x", "compression=strong"), "compression must be"),
        (("block_devices=/dev/vdb",), "/dev/vdb"),
        (("block_devices=/dev/none",), "/dev/none"),
        (("block_devices=tank",), "tank"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(dom0, options, says):
    before = datasets("tank")
    words = [word for option in options for word in ("-o", option)]
    said = dom0.run(*ADD, *words, "bad", "zfs_zvol", status=1, says=says)
    assert "Cannot add the pool bad" in said
    assert len(said.strip().splitlines()) == 1
    assert "bad" not in dom0.run("qvm-pool", "list")
    assert datasets("tank") == before


def test_an_unknown_option_is_refused(dom0):
    """core-admin-client shows a traceback here, with every driver."""
    words = ("-o", "container=tank/x", "-o", "colour=red")
    dom0.run(
        *(*ADD, *words, "bad", "zfs_zvol"),
        status=1,
        says="nexpected driver options",
        traced=True,
    )


def test_a_pool_can_use_a_whole_disk(dom0):
    option = "block_devices=/dev/vdc"
    dom0.run(*ADD, "-o", option, "disk", "zfs_zvol")
    assert "disk zfs_zvol" in dom0.run("qvm-pool", "list")
    info = dom0.run("qvm-pool", "info", "disk").splitlines()
    assert "driver zfs_zvol" in info
    assert "revisions_to_keep 2" in info
    sizes = dict(line.split(maxsplit=1) for line in info)
    assert 0 < int(sizes["usage"]) < int(sizes["size"]) < 4096 << 20

    dom0.run("qvm-pool", "set", "-o", "revisions_to_keep=5", "disk")
    info = dom0.run("qvm-pool", "info", "disk").splitlines()
    assert "revisions_to_keep 5" in info
    # qubesd itself refuses this; core-admin-client shows a traceback, and in
    # R4.3 no reason
    wrong = ("qvm-pool", "set", "-o", "revisions_to_keep=-2", "disk")
    says = "empty response" if IS_R43 else "lower than -1"
    dom0.run(*wrong, status=1, says=says, traced=True)

    create = ("qvm-create", "-C", "StandaloneVM", "-l", "blue", "-P", "disk")
    dom0.run(*create, "solo")
    keep = ("qvm-volume", "info", "solo:private", "revisions_to_keep")
    assert dom0.run(*keep) == "5\n"
    remove = ("qvm-pool", "remove", "disk")
    dom0.run(*remove, status=1, says="Storage pool is in use")
    dom0.run("qvm-remove", "-f", "solo")
    assert datasets("disk") == ["disk", "disk/vm"]


def test_a_removed_pool_keeps_its_data(dom0):
    zfs("zfs", "create", "-V", "1M", "disk/mine")
    dom0.run("qvm-pool", "remove", "disk")
    assert "disk" not in dom0.run("qvm-pool", "list")
    assert datasets("disk") == ["disk", "disk/mine", "disk/vm"]
    # block_devices is refused now, because the disk is not empty
    again = (*ADD, "-o", "block_devices=/dev/vdc", "disk", "zfs_zvol")
    dom0.run(*again, status=1, says="container=disk")
    dom0.run(*ADD, "-o", "container=disk", "disk", "zfs_zvol")
    dom0.run("qvm-pool", "remove", "disk")
    zfs("zpool", "destroy", "disk")


def test_two_pools_cannot_share_a_container(dom0, plain):
    other = (*ADD, "-o", "container=tank/plain", "other", "zfs_zvol")
    dom0.run(*other, status=1, says="belongs to the pool plain")
