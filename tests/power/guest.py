# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: the pool as qubesd would have it, and reports to the host.

    python3 -m tests.power.guest SEED CUT honest|lying

Imports the zpool (makes it, the first time), recovers as qubesd does when it
starts, reports everything that is there, and then works until the power goes.
"lying" makes a deliberate mistake, see workload.py.
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

from qubes_storage_zfs.driver.pool import ZfsZvolPool
from qubes_storage_zfs.zfs import runtime

from ..support.background import afterwards, be_patient
from ..support.zpools import inherit_no_further, sh

NAME = "power"
DEVICE = "/dev/disk/by-id/virtio-power"
BLOCKS = 256
#: bytes of every volume
SIZE = BLOCKS * 4096
#: volumes that keep their content
KEPT = ("a/private", "b/private", "c/private", "tmpl/root")
#: qubes with a volatile volume and a root that is a clone of TEMPLATE's
APPS = ("a", "b", "c")
TEMPLATE = "tmpl/root"


def say(kind: str, **what: Any) -> None:
    """Tell the host; what was told is out of the guest on return."""
    sys.stdout.write("@ " + json.dumps({"t": kind, **what}) + "\n")
    sys.stdout.flush()


class House:
    """A pool and its volumes, all made anew as from qubes.xml."""

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
        """A new object for the volume *vid*; nothing on disk yet."""
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
        """What qubesd does when it starts: it stops every halted qube."""
        await asyncio.gather(*(each.stop() for each in self.volumes.values()))
        await afterwards()
        for _ in range(40):
            # udev may be probing one of them
            if not await self.pool.store.collect_garbage():
                return
            await asyncio.sleep(0.25)


async def _main(seed: str, cut: int, lies: bool) -> None:
    # needs the tree's root on the path, like everything that is imported here
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
    house = House()
    say("recovering")
    await house.recover()
    first = check.everything()
    house = House()
    await house.recover()
    second = check.everything()
    say("checking")
    found = await check.found(house)
    say(
        "found",
        again=check.differences(first, second),
        leftovers=check.leftovers(second),
        **found,
    )
    house = House()
    await workload.run(house, f"{seed}/{cut}", cut, lies)


if __name__ == "__main__":
    be_patient()
    try:
        asyncio.run(
            _main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "lying")
        )
    except BaseException:
        say("error", text=traceback.format_exc())
        raise
