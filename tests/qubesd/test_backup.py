# SPDX-License-Identifier: BSD-2-Clause
"""qvm-backup and qvm-backup-restore.

Each byte of a restored volume is compared, because neither of the two fails if
a backup has no data.
"""

import os
from pathlib import Path

import pytest

from .dom0 import MIB, datasets, read, write, zfs

FOLDER = Path("/var/lib/qubes/backup")
PASSPHRASE = "Tr0ub4dor and horse"
ROOT_OF_KEYS = "tank/encryption/sealed"

#: (qube, volume) -> first bytes of the volume; the rest is zeros
CONTENTS = {
    ("system", "root"): os.urandom(2 * MIB + 12345),
    ("system", "private"): os.urandom(70000),
    ("office", "private"): os.urandom(3 * MIB),
    ("sealed", "root"): os.urandom(MIB),
    ("sealed", "private"): os.urandom(2 * MIB + 7),
}
TARGETS = {"root": "xvda", "private": "xvdb"}


@pytest.fixture(scope="module")
def qubes(dom0, plain):
    """Create a template, its app qube, and a qube in an encrypted pool."""
    dom0.answer(PASSPHRASE, PASSPHRASE)
    options = ("-o", "zpool_name=tank", "-o", "pbkdf2iters=100000")
    dom0.run("qvm-pool", "add", *options, "sealed", "zfs_encrypted")
    create = ("qvm-create", "-l", "blue")
    dom0.run(*create, "-P", plain, "-C", "TemplateVM", "system")
    dom0.run(*create, "-P", plain, "-t", "system", "office")
    dom0.run(*create, "-P", "sealed", "-C", "StandaloneVM", "sealed")
    for (qube, volume), content in CONTENTS.items():
        dom0.import_file(f"{qube}:{volume}", content)
    yield ["system", "office", "sealed"]
    dom0.run("qubes-prefs", "default_pool", "varlibqubes")
    dom0.run("qvm-remove", "-f", "office", "sealed")
    dom0.run("qvm-remove", "-f", "system")
    dom0.run("qvm-pool", "remove", "sealed")
    assert datasets(ROOT_OF_KEYS) == [ROOT_OF_KEYS]
    zfs("zfs", "destroy", "-r", "tank/encryption")


def check_content(dom0, qube):
    """Check each byte of the disks of a qube."""
    of_template = ("office", "system", "root")
    dom0.run("qvm-start", qube)
    for (source, volume), content in CONTENTS.items():
        if source == qube or (qube, source, volume) == of_template:
            info = ("qvm-volume", "info", f"{qube}:{volume}", "size")
            size = int(dom0.run(*info))
            assert len(content) <= size < len(content) + 65536
            data = read(qube, TARGETS[volume], size)
            assert data == content.ljust(size, b"\0"), f"{qube}:{volume}"
    dom0.shutdown(qube)


def test_a_restored_backup_has_every_byte(dom0, qubes, plain):
    dom0.run("qvm-start", "office")
    write("office", "xvdb", b"changed while it runs")
    dom0.run("qvm-zfs", "lock", "sealed")
    dom0.answer(PASSPHRASE)
    secret = Path("/root/secret")
    secret.write_text("of the backup")
    backup = ("qvm-backup", "-y", "--passphrase-file", str(secret))
    before = datasets("tank")
    said = dom0.run(*backup, "--compress", str(FOLDER), *qubes)
    assert "state from before its start" in said
    assert len(dom0.asked()) == 1
    # the exports left no dataset
    assert datasets("tank") == before
    (file,) = FOLDER.iterdir()
    assert file.stat().st_size > sum(map(len, CONTENTS.values()))

    dom0.shutdown("office")
    dom0.run("qvm-remove", "-f", "office", "sealed")
    dom0.run("qvm-remove", "-f", "system")
    left = [dataset.split("/") for dataset in datasets("tank")]
    assert not any(qube in parts[3:] for parts in left for qube in qubes)

    restore = ("qvm-backup-restore", "--skip-dom0-home", "-p", str(secret))
    for pool, names in ((plain, qubes[:2]), ("sealed", qubes[2:])):
        dom0.run("qubes-prefs", "default_pool", pool)
        dom0.answer(PASSPHRASE)
        dom0.run(*restore, "--auto-close", str(file), *names)
        for qube in names:
            where = ("qvm-volume", "info", f"{qube}:private", "pool")
            assert dom0.run(*where) == f"{pool}\n"
            check_content(dom0, qube)
    file.unlink()


def test_a_running_qube_without_revisions_is_not_backed_up(dom0, qubes):
    """The volume has no committed state that a backup could read."""
    keep = ("qvm-volume", "config", "office:private", "revisions_to_keep", "-1")
    dom0.run(*keep)
    dom0.run("qvm-start", "office")
    backup = ("qvm-backup", "-y", "--passphrase-file", "/root/secret")
    before = datasets("tank")
    dom0.run(*backup, str(FOLDER), "office", status=1, says="office")
    assert datasets("tank") == before
    dom0.shutdown("office")
