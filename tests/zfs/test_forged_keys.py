# SPDX-License-Identifier: BSD-2-Clause
"""Key parameters that another system forged on a disk."""

import subprocess
import sys
import time

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.zfs import keyholder, keys, lzc

from ..support.lab import EncryptedLab
from ..support.prompts import PASSPHRASE
from ..support.zpools import sh

pytestmark = pytest.mark.side_a

UNLOCK = [sys.executable, "-m", "qubes_storage_zfs.tools.main", "unlock"]


def forge(root, iterations):
    """Make ZFS record *iterations* for the key; only the key is needed."""
    properties = {
        "keyformat": keyholder.PASSPHRASE,
        "keylocation": "prompt",
        "pbkdf2iters": iterations,
        "pbkdf2salt": 1,
    }
    lzc.change_key(root, properties, bytes(range(32)))
    printed = sh("zfs", "get", "-Hpo", "value", "pbkdf2iters", root)
    assert printed == str(iterations)


def test_excessive_iterations_of_a_forged_key_are_refused(zpool, person):
    lab, healthy = EncryptedLab(zpool), EncryptedLab(zpool)
    volume = lab.private(content=b"data")
    other = healthy.private(content=b"data")
    for iterations in 2_000_000_000, 10_000_000_000:
        forge(lab.container, iterations)
        lab.run(keys.unload(lab.container))
        begin = time.monotonic()
        with pytest.raises(StoragePoolException, match=str(iterations)):
            lab.run(volume.export())
        done = subprocess.run(
            [*UNLOCK, lab.name],
            input=PASSPHRASE + b"\n",
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1 and b"Traceback" not in done.stderr
        assert b"change-key" in done.stderr and b"hours" in done.stderr
        assert time.monotonic() - begin < 60
        lzc.load_key(lab.container, bytes(range(32)))
    # the driver showed no prompt, and another pool works
    assert person.asked == []
    healthy.run(keys.unload(healthy.container))
    assert healthy.content(other) == b"data"
