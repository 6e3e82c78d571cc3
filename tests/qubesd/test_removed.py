# SPDX-License-Identifier: BSD-2-Clause
"""Removed qubes and templates leave nothing behind, with a real qubesd."""

import os

import pytest

from .dom0 import MIB, datasets, read, until, write, zfs

CREATE = ("qvm-create", "-l", "red")


def of(*qubes):
    """Return the datasets of these qubes in all pools."""
    return [
        name
        for name in datasets("tank")
        if "/vm/" in name and name.split("/vm/")[1].split("/")[0] in qubes
    ]


def is_gone(*qubes):
    until(lambda: not of(*qubes), f"{qubes} are gone")


def used():
    zfs("zpool", "sync", "tank")
    return int(zfs("zfs", "get", "-Hpo", "value", "used", "tank/plain")[0])


@pytest.fixture(scope="module")
def second(dom0, plain):
    """Create another pool with a copy of the template."""
    option = "container=tank/second"
    dom0.run("qvm-pool", "add", "-o", option, "second", "zfs_zvol")
    dom0.run("qvm-clone", "-q", "-P", "second", "tmpl", "tmpl-2")
    return "second"


def test_a_root_prepared_in_a_former_pool_is_removed(dom0, second):
    dom0.run(*CREATE, "-P", "plain", "-t", "tmpl", "w1")
    dom0.cycle("w1")
    root = "tank/plain/vm/w1/root.1"
    assert root in of("w1")
    # nothing else uses the former pool, and qubesd does not restart
    dom0.run("qvm-prefs", "w1", "template", "tmpl-2")
    until(
        lambda: not any("plain/vm/w1/root" in x for x in of("w1")),
        "the old root is gone",
    )
    until(
        lambda: any("second/vm/w1/root" in x for x in of("w1")),
        "the root is prepared",
    )
    dom0.cycle("w1")
    dom0.run("qvm-remove", "-f", "w1")
    is_gone("w1")


def test_a_prepared_disposable_keeps_no_data_of_a_former_template(dom0, second):
    for name, pool in (("d1", "plain"), ("d2", second)):
        dom0.run(*CREATE, "-P", pool, "-t", "tmpl", name)
        dom0.run("qvm-prefs", name, "template_for_dispvms", "True")
    dom0.session("d1", b"SECRET-OF-D1")
    dom0.run(*CREATE, "-P", "plain", "-C", "DispVM", "-t", "d1", "nd")
    dom0.run("qvm-start", "nd")
    assert read("nd", "xvdb", 12) == b"SECRET-OF-D1"
    dom0.shutdown("nd")
    dom0.run("qvm-prefs", "nd", "template", "d2")
    until(
        lambda: not any("plain/vm/nd/private" in x for x in of("nd")),
        "the old volume is gone",
    )
    # core-admin notifies disposables itself of a change of their template
    dom0.run("qvm-prefs", "d2", "template", "tmpl-2")
    dom0.run("qvm-remove", "-f", "d1")
    is_gone("d1")
    dom0.run("qvm-start", "nd")
    assert read("nd", "xvdb", 12) == bytes(12)
    dom0.shutdown("nd")
    # one by one, because the client chooses the order of several
    dom0.run("qvm-remove", "-f", "nd")
    dom0.run("qvm-remove", "-f", "d2")
    is_gone("nd", "d2")


def test_a_removed_template_frees_its_space(dom0, plain):
    dom0.run(
        "qvm-create", "-P", "plain", "-l", "black", "-C", "TemplateVM", "big"
    )
    dom0.import_file("big:root", os.urandom(10 * MIB))
    dom0.run(*CREATE, "-P", "plain", "-t", "big", "w3")
    until(
        lambda: any("/w3/root" in name for name in of("w3")),
        "the root is prepared",
    )
    before = used()
    dom0.run("qvm-prefs", "w3", "template", "tmpl")
    dom0.run("qvm-remove", "-f", "big")
    is_gone("big")
    until(lambda: before - used() > 9 * MIB, "9 MiB are free")
    dom0.run("qvm-remove", "-f", "w3")


def test_templates_upgraded_in_place_free_their_space(dom0, plain):
    before = used()
    dom0.run(
        "qvm-create", "-P", "plain", "-l", "black", "-C", "TemplateVM", "f1"
    )
    dom0.import_file("f1:root", os.urandom(8 * MIB))
    for old, new in (("f1", "f2"), ("f2", "f3")):
        dom0.run("qvm-clone", "-q", "-P", "plain", old, new)
        keep = ("qvm-volume", "config", f"{new}:root", "revisions_to_keep", "0")
        dom0.run(*keep)
        dom0.run("qvm-remove", "-f", old)
        dom0.run("qvm-start", new)
        write(new, "xvda", os.urandom(8 * MIB))
        dom0.shutdown(new)
    is_gone("f1", "f2")
    until(lambda: used() - before < 10 * MIB, "10 MiB are free")
    assert dom0.revisions("f3:root") == []
    dom0.run("qvm-remove", "-f", "f3")


def test_a_volume_that_an_earlier_qubesd_missed_is_removed(dom0, second):
    """Make the dataset of a qube whose root volume is in another pool now."""
    dom0.run(*CREATE, "-P", "plain", "-t", "tmpl", "w9")
    dom0.cycle("w9")
    until(lambda: "tank/plain/vm/w9/root.1" in of("w9"), "the root is prepared")
    # as if an earlier qubesd had left it
    root = "tank/plain/vm/w9"
    made = zfs("zfs", "get", "-Ho", "value", "origin", f"{root}/root.1")
    pointer = "qubes-storage-zfs:current.root"
    value = zfs("zfs", "get", "-Ho", "value", pointer, root)
    left = root.replace("w9", "lost")
    zfs("zfs", "create", "-o", "canmount=off", left)
    zfs("zfs", "clone", made[0], f"{left}/root.1")
    zfs("zfs", "snapshot", f"{left}/root.1@s1")
    zfs("zfs", "set", "qubes-storage-zfs:holder=gone:1:1", f"{left}/root.1")
    zfs("zfs", "set", f"{pointer}={value[0]}", left)
    dom0.stop()
    dom0.start()
    dom0.run("qvm-start", "w9")
    is_gone("lost")
    assert "tank/plain/vm/w9/root.1" in of("w9")
    dom0.shutdown("w9")
    dom0.run("qvm-remove", "-f", "w9")
    is_gone("w9")
    dom0.run("qvm-remove", "-f", "tmpl-2")
    dom0.run("qvm-pool", "remove", "second")
