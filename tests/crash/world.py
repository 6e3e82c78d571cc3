# SPDX-License-Identifier: BSD-2-Clause
"""A few qubes in a container of their own, which can be stopped."""

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from qubes_storage_zfs.driver import prompts
from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.driver.pool import ZfsPool
from qubes_storage_zfs.driver.volume import ZfsVolume
from qubes_storage_zfs.driver.zvol import ZfsZvolPool
from qubes_storage_zfs.store import naming
from qubes_storage_zfs.store.container import Containers
from qubes_storage_zfs.zfs import devices, runtime
from qubes_storage_zfs.zfs.errors import Busy, Exists, Locked

from ..support.background import afterwards
from ..support.lab import create_encrypted, known_key
from ..support.model import Content, VolumeModel
from ..support.prompts import Person
from ..support.zpools import attempt, inherit_no_further, open_device, sh
from .gate import Door, Dump, Gate, Violated
from .needed import check_needed

MIB = 1 << 20
TAG_AT = (0, MIB)  # offsets of the tag in a volume, in bytes
#: bytes; opening a clone first writes less than this, and any data more
UNTOUCHED = 8192
SNAPSHOT_OF_ADMIN = "admin"
#: the baseline snapshot that a disposable volume is reset to
BASELINE = "s1"

Model = VolumeModel[Content]

#: vid -> whether the volume is saved on stop
VOLUMES = {
    "tmpl/root": True,
    "app/root": False,
    "app/private": True,
    "app/volatile": False,
    "src/private": True,
    "new/private": True,
}


class World:
    """The qubes of one container: a template, its app qube, and two others.

    The template is tmpl, its qube app and a standalone src; sequences create
    and remove new.  A test creates a World for its whole run.

    :ivar model: vid of a kept volume -> what the volume must contain
    :ivar running: running qube -> content of its root at its start
    :ivar contents: GUID of a snapshot -> its content
    :ivar removed: GUIDs of snapshots whose volumes were removed
    :ivar foreign: datasets and snapshots of the administrator -> their GUIDs
    :ivar log: the steps so far, for the report of a violation
    """

    def __init__(
        self,
        door: Door,
        zpool: str,
        number: int,
        keep: int,
        encrypted: bool = False,
    ) -> None:
        self.door = door
        self.number = number
        self.encrypted = encrypted
        self.container = f"{zpool}/w{number}"
        self.gate = door.gates[self.container] = Gate()
        self.keep = keep
        self.model = {
            vid: VolumeModel(keep if vid == "app/private" else 2)
            for vid, is_kept in VOLUMES.items()
            if is_kept
        }
        self.running: dict[str, Content | None] = {}
        self.sizes = {vid: 4 * MIB for vid in VOLUMES}
        self.contents: dict[int, Content] = {}
        self.removed: set[int] = set()
        self.foreign: dict[str, int] = {}
        self.log: list[str] = []
        self.tags = 0
        #: the step in progress: its volume, and the model of it afterwards
        self.pending: tuple[str, Model] | None = None
        #: snapshots of a volume that is being removed
        self.going: set[int] = set()
        self.volatile = ""
        #: generations that an export or import uses, so not garbage
        self.in_use: set[str] = set()
        self.build()

    async def set_up(self) -> None:
        if self.encrypted:
            prompts.prompt = Person().prompt
            create_encrypted(self.pool.container, self.pool.name)
        else:
            await self.pool.setup()
        inherit_no_further(self.pool.qubes_root)

    # --- the key

    def lock(self) -> None:
        """Unload the key, unless it is in use.

        A stop of the machine or an administrator does this.
        """
        if self.encrypted:
            with contextlib.suppress(Busy, Locked):
                self.door._call("unload_key", self._root, self._root.encode())

    def unlock(self) -> None:
        """Load the key as an administrator does, without a prompt."""
        if self.encrypted:
            with known_key() as key, contextlib.suppress(Exists):
                root = self._root
                self.door._call("load_key", root, root.encode(), False, key)

    @property
    def _root(self) -> str:
        return self.pool.container

    # --- qubesd's part

    def build(self) -> None:
        """Create pool and volumes, as qubesd does from qubes.xml."""
        name = f"w{self.number}"
        self.pool: ZfsPool
        if self.encrypted:
            # never unload the key by itself: a result that is compared must
            # not depend on the time that passed
            self.pool = ZfsEncryptedPool(
                name=name,
                zpool_name=self.container,
                unload_timeout="-1",
                revisions_to_keep="2",
            )
        else:
            self.pool = ZfsZvolPool(
                name=name, container=self.container, revisions_to_keep="2"
            )
        self.volumes: dict[str, ZfsVolume] = {}
        for vid, is_kept in VOLUMES.items():
            qube, name = vid.split("/")
            config: dict[str, Any] = {
                "name": name,
                "pool": self.pool.name,
                "vid": vid,
                "rw": True,
                "size": str(self.sizes[vid]),
            }
            if is_kept:
                config |= {
                    "save_on_stop": True,
                    "revisions_to_keep": str(self.model[vid].keep),
                }
            elif name == "root":
                config |= {
                    "snap_on_start": True,
                    "source": self.volumes["tmpl/root"],
                }
            self.volumes[vid] = self.pool.init_volume(
                SimpleNamespace(name=qube, app=None), config
            )

    def vids_of(self, qube: str) -> list[str]:
        return [vid for vid in VOLUMES if vid.startswith(qube + "/")]

    def mark_running(self, qube: str, root: Content | None) -> None:
        self.running[qube] = root
        for vid in self.vids_of(qube):
            Path(self.volumes[vid].state_file).touch()

    def mark_halted(self, qube: str) -> None:
        self.running.pop(qube, None)
        for vid in self.vids_of(qube):
            Path(self.volumes[vid].state_file).unlink(missing_ok=True)

    def lose_memory(self, machine: bool) -> None:
        """Discard the Python state: qubesd died, or the whole machine did."""
        for vid, volume in self.volumes.items():
            self.sizes[vid] = volume.content.size
        runtime.of(Containers).drop(self.pool.container, self.pool.qubes_root)
        if machine:
            for qube in list(self.running):
                self.mark_halted(qube)
            self.lock()
        self.build()

    async def recover(self) -> None:
        """Recover as qubesd does at its start, and collect garbage once."""
        for vid, volume in self.volumes.items():
            if vid.split("/")[0] not in self.running:
                await volume.stop()
                Path(volume.state_file).unlink(missing_ok=True)
        await afterwards()
        # the thread that makes links may keep a zvol open for a moment
        for _ in range(100):
            if not await self.pool.store.collect_garbage():
                break
            await asyncio.sleep(0.02)
        self.unlock()
        if self.encrypted:
            # garbage that only the key reveals is collected at the next use
            await self.pool.first_use()

    # --- contents on disk

    def new_tag(self, vid: str) -> str:
        self.tags += 1
        return f"{self.number}/{vid}/{self.tags}"

    async def modify(self, vid: str) -> None:
        """Write to a kept volume, as a running qube does."""
        tag, now = self.new_tag(vid), self.model[vid]
        await self.write(vid, tag)
        self.model[vid] = now.showing(replace(now.current, tag=tag))

    async def write(self, vid: str, tag: str) -> None:
        dataset = self.volumes[vid].dataset
        await self.write_to(await devices.wait_for_link(dataset), tag)

    async def write_to(self, path: str, tag: str) -> None:
        with open_device(path, os.O_RDWR) as file:
            for offset in TAG_AT:
                file.seek(offset)
                file.write(tag.encode().ljust(4096, b"\0"))
            os.fsync(file)

    async def read(self, path: str) -> Content:
        with open_device(path, os.O_RDONLY) as file:
            return self.read_opened(file)

    @staticmethod
    def read_opened(file: IO[bytes]) -> Content:
        tags = []
        for offset in TAG_AT:
            file.seek(offset)
            tags.append(file.read(4096).rstrip(b"\0").decode())
        tag = tags[0] if len(set(tags)) == 1 else f"mixed {tags}"
        return Content(tag, file.seek(0, os.SEEK_END))

    def dump(self, qube: str | None = None) -> Dump:
        """Dump the container, or the datasets of one qube."""
        below = qube and f"{self.pool.qubes_root}/{qube}"
        qubes_root = self.pool.qubes_root
        return self.door.dump(self.container, below, qubes_root.count("/") + 2)

    def generations(self, dump: Dump, vid: str) -> dict[int, dict[str, Any]]:
        where = naming.volume_name(self.pool.qubes_root, vid)
        numbers = {where.number_of(name): item for name, item in dump.items()}
        numbers.pop(None, None)
        return numbers

    def pointer(self, dump: Dump, vid: str) -> str | None:
        where = naming.volume_name(self.pool.qubes_root, vid)
        return dump.get(where.dataset, {}).get("own", {}).get(where.pointer)

    async def read_revision(self, snapshot: str) -> Content:
        """Read a snapshot through a clone outside of the qubes root."""
        clone = f"{self.container}/clone"
        sh("zfs", "clone", snapshot, clone)
        try:
            return await self.read(await devices.wait_for_link(clone))
        finally:
            for _ in range(50):
                # udev may be probing the clone
                if attempt("zfs", "destroy", clone).returncode == 0:
                    break
                await asyncio.sleep(0.1)

    async def observe(self, dump: Dump, vid: str) -> Model:
        """Return the model that ZFS and the device of a kept volume show."""
        keep = self.model[vid].keep
        pointer = self.pointer(dump, vid)
        if pointer is None:
            return VolumeModel(keep)
        generations = self.generations(dump, vid)
        number = int(pointer.split()[0])
        current = generations.get(number)
        if current is None:
            raise Violated(f"{vid} points to nothing")
        where = naming.volume_name(self.pool.qubes_root, vid)
        path = await devices.wait_for_link(where.generation(number))
        content = await self.read(path)
        if content.size != current["volsize"]:
            raise Violated(f"{vid}: device and dataset differ in size")
        states, names = {}, {}
        for generation, item in generations.items():
            for name, snapshot in item["snapshots"].items():
                if name[0] != "r" or snapshot["leaving"]:
                    continue
                number = naming.revision_number(name)
                if number in states:
                    raise Violated(f"{vid} has two revisions {name}")
                states[number] = snapshot["guid"]
                names[number] = f"{where.generation(generation)}@{name}"
                if snapshot["guid"] in self.removed:
                    raise Violated(f"{vid}: {name} belongs to a removed volume")
        newest = current["snapshots"].get(f"r{max(states, default=0)}")
        if newest and newest["guid"] not in self.contents:
            if current["written"] > UNTOUCHED:
                raise Violated(f"{vid} changed since its newest revision")
            self.contents[newest["guid"]] = content
        for number, guid in states.items():
            if guid not in self.contents:
                # two revisions were made at once; this is the older one
                self.contents[guid] = await self.read_revision(names[number])
        return VolumeModel(
            keep,
            content,
            tuple(self.contents[states[number]] for number in sorted(states)),
            " from " in pointer
            and pointer.endswith(f" r{max(states, default=0)}"),
        )

    def guids(self, vid: str) -> set[int]:
        """Return the GUIDs of a volume's snapshots, except the administrator's."""
        dump = self.dump(vid.split("/")[0])
        return {
            snapshot["guid"]
            for item in self.generations(dump, vid).values()
            for name, snapshot in item["snapshots"].items()
            if name != SNAPSHOT_OF_ADMIN
        }

    # --- the promises

    def legal(self, vid: str, stopped: bool) -> list[Model]:
        """Return the models that a volume may match now.

        :param stopped: whether the step in progress may be done or not
        """
        legal = [self.model[vid]]
        if stopped and self.pending and self.pending[0] == vid:
            legal.append(self.pending[1])
        if stopped and vid.split("/")[0] not in self.running:
            legal = [state.stopped() for state in legal]
        return legal

    async def check(self, stopped: bool = False) -> Dump:
        """Check all promises; return the dump that they were checked in.

        :param stopped: whether this is a recovery after a stop, so that the
            step in progress may be done or not
        :raises Violated: if a promise is broken
        """
        await afterwards()
        dump = self.dump()
        for vid in self.model:
            await self._check_volume(dump, vid, stopped)
        self.pending, self.going = None, set()
        await self._check_disposable(dump)
        if self.foreign != self.foreign_guids(dump):
            raise Violated("a dataset of the administrator has changed")
        self._check_garbage(dump)
        pointers = {vid: self.pointer(dump, vid) for vid in VOLUMES}
        check_needed(dump, self.pool.qubes_root, pointers)
        return dump

    async def check_volume(self, vid: str) -> None:
        """Check one volume, which no other step is changing."""
        await self._check_volume(self.dump(vid.split("/")[0]), vid, False)

    async def _check_volume(self, dump: Dump, vid: str, stopped: bool) -> None:
        model, legal = self.model[vid], self.legal(vid, stopped)
        seen = await self.observe(dump, vid)
        if seen not in legal:
            raise Violated(f"{vid} is {seen}, not {legal}")
        self.model[vid] = seen
        if self.pending == (vid, VolumeModel(model.keep)) == (vid, seen):
            self.removed |= self.going

    async def _check_disposable(self, dump: Dump) -> None:
        expected = {
            "app/root": self.running.get("app"),
            "app/volatile": Content(self.volatile, 4 * MIB),
        }
        for vid, content in expected.items():
            pointer = self.pointer(dump, vid)
            if "app" not in self.running:
                if pointer is not None:
                    self._check_prepared(dump, vid, pointer)
                continue
            if pointer is None:
                raise Violated(f"{vid} is gone under a running qube")
            where = naming.volume_name(self.pool.qubes_root, vid)
            number = int(pointer.split()[0])
            path = await devices.wait_for_link(where.generation(number))
            seen = await self.read(path)
            if seen != content:
                raise Violated(f"{vid} shows {seen}, not {content}")

    def _check_prepared(self, dump: Dump, vid: str, pointer: str) -> None:
        """Check a prepared volume: it is unmodified since its baseline."""
        number = int(pointer.split()[0])
        item = self.generations(dump, vid).get(number)
        if item is None:
            raise Violated(f"{vid} points to nothing")
        if list(item["snapshots"]) != [BASELINE]:
            raise Violated(f"{vid} has the snapshots {item['snapshots']}")
        if item["written"] > UNTOUCHED:
            raise Violated(f"{vid} has content of its last session")
        if vid == "app/root":
            source = self.generations(dump, "tmpl/root")
            names = {
                (naming.revision_number(short), number, short)
                for number, entry in source.items()
                for short, snapshot in entry["snapshots"].items()
                if short[0] == "r" and not snapshot["leaving"]
            }
            where = naming.volume_name(self.pool.qubes_root, "tmpl/root")
            _, number, short = max(names)
            if item["origin"] != f"{where.generation(number)}@{short}":
                raise Violated(
                    f"{vid} is prepared ({pointer}) from an old revision:"
                    f" {item['origin']}, not {where.generation(number)}@{short}"
                )

    def _check_garbage(self, dump: Dump) -> None:
        """Check that each dataset and snapshot has a reason to exist."""
        origins = {item.get("origin") for item in dump.values()}
        for qube in {vid.split("/")[0] for vid in VOLUMES}:
            dataset = f"{self.pool.qubes_root}/{qube}"
            below = [name for name in dump if name.startswith(dataset + "/")]
            if dataset in dump and not below:
                raise Violated(f"{dataset} is empty")
        for vid in VOLUMES:
            pointer = self.pointer(dump, vid)
            where = naming.volume_name(self.pool.qubes_root, vid)
            for number, item in self.generations(dump, vid).items():
                name = where.generation(number)
                reasons = name in self.in_use or (
                    pointer and int(pointer.split()[0]) == number
                )
                for short, snapshot in item["snapshots"].items():
                    if f"{name}@{short}" in origins:
                        reasons = True
                    elif short == SNAPSHOT_OF_ADMIN or (
                        pointer and short[0] in "rs"
                    ):
                        reasons = True
                    else:
                        raise Violated(f"{name}@{short} is garbage")
                    if short[0] == "r" and not (pointer or snapshot["leaving"]):
                        raise Violated(f"{name}@{short} outlives its volume")
                if not reasons:
                    raise Violated(f"{name} is garbage: {item}")

    # --- datasets of the administrator

    def disturb(self) -> None:
        """Create datasets and snapshots of an administrator in the container."""
        foreign = f"{self.container}/foreign"
        sh("zfs", "create", "-o", "canmount=off", foreign)
        sh("zfs", "create", "-s", "-V", "1M", f"{foreign}/vol.1")
        sh("zfs", "snapshot", f"{foreign}@keep")
        if self.number % 2:
            for vid in ("tmpl/root", "app/private"):
                dataset = self.volumes[vid].dataset
                sh("zfs", "snapshot", f"{dataset}@{SNAPSHOT_OF_ADMIN}")
        self.foreign = self.foreign_guids(self.dump())

    def foreign_guids(self, dump: Dump) -> dict[str, int]:
        """Return the administrator's datasets and snapshots, with their GUIDs.

        A promotion can move a snapshot to another dataset. The name of the
        dataset then differs, so a comparison finds this too.
        """
        guids = {}
        for name, item in dump.items():
            if "/foreign" in name:
                guids[name] = item["guid"]
            for short, snapshot in item["snapshots"].items():
                if short in (SNAPSHOT_OF_ADMIN, "keep"):
                    guids[f"{name}@{short}"] = snapshot["guid"]
        return guids
