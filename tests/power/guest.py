# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: use the pool as qubesd does, and report to the host.

    python3 -m tests.power.guest SEED CUT honest|lying

Import the zpool (the first guest creates it) and recover as qubesd does at its
start.  Report the content of all volumes, then work until the power is cut.
"lying" makes a deliberate mistake, see Qube.is_lying in workload.py.
"""

import asyncio
import json
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import qubes.storage

from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.zfs import runtime

from ..support.background import afterwards, be_patient
from ..support.zpools import inherit_no_further, sh

NAME = "power"
DEVICE = "/dev/disk/by-id/virtio-power"
BLOCKS = 256
#: bytes of each volume
SIZE = BLOCKS * 4096
#: the kept volumes
KEPT = ("a/private", "b/private", "c/private", "tmpl/root")
#: qubes with a volatile volume and a root that is a clone of TEMPLATE's
APPS = ("a", "b", "c")
TEMPLATE = "tmpl/root"


def say(kind: str, **fields: Any) -> None:
    """Report to the host; the report has left the guest on return."""
    sys.stdout.write("@ " + json.dumps({"t": kind, **fields}) + "\n")
    sys.stdout.flush()


class Qubesd:
    """New objects for the pool and its volumes, as qubesd makes at its start."""

    def __init__(self) -> None:
        runtime.restart()
        self.pool = ZfsZvolPool(name=NAME, block_devices=DEVICE)
        self.volumes: dict[str, Any] = {}
        for vid in KEPT:
            self.volume(vid)
        for qube in APPS:
            self.volume(f"{qube}/volatile")
            self.volume(f"{qube}/root")

    def volume(self, vid: str) -> Any:
        """Return a new object for a volume; nothing changes on disk."""
        qube, _, name = vid.partition("/")
        config: dict[str, Any] = {"name": name, "rw": True, "size": SIZE}
        config["pool"] = NAME
        if vid in KEPT:
            config["save_on_stop"] = True
        elif name == "root":
            config["snap_on_start"] = True
            config["source"] = self.volumes[TEMPLATE]
        vm = types.SimpleNamespace(name=qube, app=None)
        self.volumes[vid] = self.pool.init_volume(vm, config)
        return self.volumes[vid]

    async def recover(self) -> None:
        """Stop each halted qube and collect garbage, as qubesd at its start."""
        await asyncio.gather(
            *(volume.stop() for volume in self.volumes.values())
        )
        await afterwards()
        for _ in range(40):
            # udev may be probing a zvol, which is then not destroyed
            if not await self.pool.store.collect_garbage():
                return
            await asyncio.sleep(0.25)


async def _main(seed: str, cut: int, is_lying: bool) -> None:
    # these modules import names of this one
    from . import check, workload

    qubes.storage.VOLUME_STATE_DIR = "/run/qubes"
    Path(qubes.storage.VOLUME_STATE_DIR).mkdir(exist_ok=True)
    os.environ["LC_ALL"] = "C.UTF-8"
    if cut == 0:
        pool = ZfsZvolPool(name=NAME, block_devices=DEVICE)
        await pool.setup()
        inherit_no_further(pool.qubes_root)
        sh("zpool", "sync", NAME)
    else:
        say("importing")
        sh("zpool", "import", "-f", "-N", "-d", DEVICE + "-part1", NAME)
    qubesd = Qubesd()
    say("recovering")
    await qubesd.recover()
    first = check.everything()
    qubesd = Qubesd()
    await qubesd.recover()
    second = check.everything()
    say("checking")
    observed = await check.observed(qubesd)
    say(
        "observed",
        again=check.differences(first, second),
        garbage=check.garbage(second),
        **observed,
    )
    qubesd = Qubesd()
    await workload.run(qubesd, f"{seed}/{cut}", cut, is_lying)


if __name__ == "__main__":
    be_patient()
    try:
        asyncio.run(
            _main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "lying")
        )
    except BaseException:
        say("error", text=traceback.format_exc())
        raise
