# SPDX-License-Identifier: BSD-2-Clause
"""Commands of an administrator on the datasets of a World."""

import asyncio
from dataclasses import replace
from typing import Any

from qubes_storage_zfs.store import naming

from ..support.zpools import attempt, export_zpool, sh
from .world import SNAPSHOT_OF_ADMIN, Model, World


class Admin(World):
    """A World with an administrator, who runs zfs(8) and zpool(8).

    :ivar full: whether the zpool has almost no space left
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.filler = self.container.split("/")[0] + "/filler"
        self.full = False
        #: volumes changed by the newest step -> their allowed states
        self._may_be: dict[str, tuple[Model, ...]] = {}

    def _tag(self, vid: str) -> str:
        """Return a name for the next content of a volume; Life has it."""
        raise NotImplementedError

    def disturb(self) -> None:
        """Create datasets of an administrator among those of the pool."""
        foreign = f"{self.container}/foreign"
        sh("zfs", "create", "-o", "canmount=off", foreign)
        sh("zfs", "create", "-s", "-V", "1M", f"{foreign}/vol.1")
        self.foreign = self.foreign_guids(self.dump())

    async def collect_garbage(self) -> None:
        """Collect garbage until all that is left is open or imported."""
        for _ in range(40):
            if not set(await self.pool.store.collect_garbage()) - self.in_use:
                return
            await asyncio.sleep(0.1)

    def fill(self, slack: int) -> None:
        """Leave *slack* bytes of free space in the zpool."""
        free = int(sh("zfs", "get", "-Hpo", "value", "available", self.filler))
        reservation = f"reservation={max(0, free - slack)}"
        sh("zfs", "set", reservation, self.filler)
        self.full = True

    def relieve(self) -> None:
        """Give the zpool its free space back."""
        if self.full:
            sh("zfs", "set", "reservation=none", self.filler)
            self.full = False

    def _current(self, vid: str) -> str:
        where = naming.volume_name(self.pool.qubes_root, vid)
        return where.generation(int(self.pointer(self.dump(), vid)))

    def snapshot(self, vid: str) -> None:
        """Take the snapshot of an administrator, unless it exists."""
        snapshot = f"{self._current(vid)}@{SNAPSHOT_OF_ADMIN}"
        sh("zfs", "snapshot", snapshot, check=False)
        self.foreign = self.foreign_guids(self.dump())

    def snapshots_by_hand(self) -> list[str]:
        return [
            name
            for name in self.foreign
            if name.endswith("@" + SNAPSHOT_OF_ADMIN)
        ]

    async def drop_snapshots(self) -> None:
        """Destroy the administrator's snapshots that have no clone."""
        for name in self.snapshots_by_hand():
            sh("zfs", "destroy", name, check=False)
        self.foreign = self.foreign_guids(self.dump())
        await self.collect_garbage()

    async def destroy_revision(self, vid: str, index: int) -> None:
        """Destroy a revision with zfs(8), which refuses if it has a clone."""
        now = self.model[vid]
        revisions = {}
        where = naming.volume_name(self.pool.qubes_root, vid)
        for number, item in self.generations(self.dump(), vid).items():
            for short, snapshot in item["snapshots"].items():
                if short != SNAPSHOT_OF_ADMIN and not snapshot["leaving"]:
                    name = f"{where.generation(number)}@{short}"
                    revisions[naming.revision_number(short)] = name
        name = revisions[sorted(revisions)[index]]
        if attempt("zfs", "destroy", name).returncode == 0:
            states = now.states[:index] + now.states[index + 1 :]
            self._may_be[vid] = (replace(now, states=states),)
            await self.collect_garbage()

    def rename(self) -> None:
        """Rename the administrator's datasets."""
        old = next(name for name in self.foreign if "@" not in name)
        old = "/".join(old.split("/")[:3])
        self.tags += 1
        new = f"{self.container}/foreign{self.tags}"
        sh("zfs", "rename", old, new)
        self.foreign = {
            new + name.removeprefix(old) if "/foreign" in name else name: guid
            for name, guid in self.foreign.items()
        }

    def reimport(self) -> None:
        """Export and import the zpool, and load the key."""
        zpool = self.container.split("/")[0]
        export_zpool(zpool)
        sh("zpool", "import", "-d", "/tmp", zpool)
        self.unlock()
