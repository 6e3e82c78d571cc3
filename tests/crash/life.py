# SPDX-License-Identifier: BSD-2-Clause
"""A World for tests that choose one step at a time.

Steps of an administrator come in between.  Each step records the states that
its volume may have afterwards, and check() compares them with ZFS.  If the
zpool is full, an operation may be refused; the volume is then unchanged.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver.volume import ZfsVolume
from qubes_storage_zfs.zfs import devices

from ..support.background import abandoned
from ..support.model import Content
from ..support.zpools import open_device, sh
from .admin import Admin
from .gate import Dump, Violated
from .world import MIB, SNAPSHOT_OF_ADMIN, VOLUMES, Model

Call = Callable[[], Awaitable[object]]
KEPT = tuple(vid for vid, is_kept in VOLUMES.items() if is_kept)


@dataclass
class Export:
    """An export that a process reads.

    :ivar orphan: whether qubesd restarted since and has no record of it
    """

    volume: ZfsVolume
    path: str
    content: Content
    reader: IO[bytes]
    orphan: bool = False


class Life(Admin):
    """The steps of a user, of qubesd and of an administrator in a World.

    :ivar exports: exports that are open; each may stay open for many steps
    :ivar imports: vid -> zvol of an import that was never finished
    :ivar refused: how many operations were refused because the zpool was full
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.exports: list[Export] = []
        self.imports: dict[str, str] = {}
        self.refused = 0

    async def begin(self) -> None:
        """Create the template and the qube, and run the qube once."""
        await self.set_up()
        for vid in "tmpl/root", "app/private":
            await self.create(vid)
            await self.check()
        volume = self.volumes["app/private"]
        await self.pool.unlock()
        await volume.start()
        await self.modify("app/private")
        await volume.stop()
        self.model["app/private"] = self.model["app/private"].stopped()
        self.disturb()
        await self.check()

    # --- what is allowed

    def exists(self, vid: str) -> bool:
        return self.model[vid].current is not None

    def halted(self, vid: str) -> bool:
        return self.exists(vid) and vid.split("/")[0] not in self.running

    def readable(self, vid: str) -> bool:
        return self.exists(vid) and (
            self.model[vid].keep >= 0 or self.halted(vid)
        )

    def legal(self, vid: str, stopped: bool) -> list[Model]:
        return list(self._may_be.get(vid, [self.model[vid]]))

    async def check(self, stopped: bool = False) -> Dump:
        """Check the promises, and what changed volumes report to qubesd."""
        self.in_use = {devices.dataset_of(item.path) for item in self.exports}
        self.in_use |= set(self.imports.values())
        dump = await super().check(stopped)
        for item in self.exports:
            # from the disk, not from the page cache
            descriptor = item.reader.fileno()
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            seen = self.read_opened(item.reader)
            if seen != item.content:
                raise Violated(f"{item.path} shows {seen}, not {item.content}")
        for vid in self._may_be:
            self._check_face(vid)
        self._may_be = {}
        return dump

    def _check_face(self, vid: str) -> None:
        volume, now = self.volumes[vid], self.model[vid]
        if len(volume.revisions) != max(0, len(now.states) - 1):
            raise Violated(f"{vid} lists {volume.revisions}, not {now}")
        if now.current is None:
            return
        if volume.size != now.current.size:
            raise Violated(f"{vid} says {volume.size}, not {now}")
        dirty = vid.split("/")[0] in self.running or (
            now.keep >= 0 and now.current != now.committed
        )
        if volume.is_dirty() != dirty:
            raise Violated(f"{vid} is dirty: {not dirty}, and {now}")

    def _bases(self, vid: str) -> list[Model]:
        """Return the models that new content may follow; see before_import()."""
        now, unsure = self.model[vid], False
        if now.keep >= 0 and now.current == now.committed:
            dump = self.dump()
            number = int(self.pointer(dump, vid))
            current = self.generations(dump, vid)[number]
            by_admin = SNAPSHOT_OF_ADMIN in current["snapshots"]
            unsure = bool(current["written"]) or by_admin
        return now.before_import(unsure)

    # --- operations

    async def attempt(
        self,
        vid: str,
        call: Call,
        *after: Model,
        refused: tuple[Model, ...] = (),
    ) -> bool:
        """Call the driver; return whether the call succeeded.

        :param after: allowed models of the volume after success
        :param refused: allowed models after a refusal, besides the old one
        """
        before = self.model[vid]
        try:
            await call()
        except StoragePoolException:
            if not self.full:
                raise
            self.refused += 1
            self._may_be[vid] = (before, *after, *refused)
            return False
        self._may_be[vid] = after
        return True

    async def create(self, vid: str) -> bool:
        volume = self.volumes[vid]
        after = self.model[vid].created(Content("", volume.content.size))
        return await self.attempt(vid, volume.create, after)

    async def start(self, qube: str) -> None:
        """Start a qube; if one volume does not start, stop all, as qubesd does."""
        (kept_vid,) = (vid for vid in self.vids_of(qube) if vid in KEPT)
        now = self.model[kept_vid]
        root = self.model["tmpl/root"].committed if qube == "app" else None
        self.imports.pop(kept_vid, None)
        self._may_be[kept_vid] = (now,)
        try:
            for vid in self.vids_of(qube):
                await self.pool.unlock()
                await self.volumes[vid].start()
        except StoragePoolException:
            if not self.full:
                raise
            self.refused += 1
            self.relieve()
            for vid in self.vids_of(qube):
                await self.volumes[vid].stop()
            self._may_be[kept_vid] = (now.stopped(),)
            return
        self.volatile = ""
        self.mark_running(qube, root)

    async def use(self, qube: str) -> None:
        """Write to the volumes of a qube, as the qube does."""
        for vid in self.vids_of(qube):
            if vid in KEPT:
                await self.modify(vid)
            elif vid.endswith("volatile"):
                self.volatile = self.new_tag(vid)
                await self.write(vid, self.volatile)

    async def stop(self, qube: str) -> None:
        """Stop a qube; a full zpool may prevent the commit, not the stop."""
        (kept_vid,) = (vid for vid in self.vids_of(qube) if vid in KEPT)
        now = self.model[kept_vid]
        del self.running[qube]
        for vid in self.vids_of(qube):
            await self.volumes[vid].stop()
        self.mark_halted(qube)
        uncommitted = (now,) if self.full else ()
        self._may_be[kept_vid] = (now.stopped(), *uncommitted)

    async def import_data(self, vid: str, size: int, end: bool | None) -> None:
        """Import new content.

        :param end: its success; None: the import is never finished
        """
        volume, now = self.volumes[vid], self.model[vid]
        self.imports.pop(vid, None)
        content = Content(self.new_tag(vid), size)
        written = True
        try:
            path = await volume.import_data(size)
        except StoragePoolException:
            if not self.full:
                raise
            self.refused += 1
            return
        try:
            await self.write_to(path, content.tag)
        except OSError:
            if not self.full:
                raise
            self.refused += 1
            written = False
        if end is None:
            self.imports[vid] = devices.dataset_of(path)
        elif end and written:
            after = self._replaced(vid, content)
            await self.attempt(
                vid, lambda: volume.import_data_end(True), *after
            )
        else:
            await self.attempt(vid, lambda: volume.import_data_end(False), now)

    def _replaced(self, vid: str, content: Content) -> list[Model]:
        now = self.model[vid]
        bases = self._bases(vid) if now.keep > 0 else [now]
        return [base.imported(content) for base in bases]

    async def copy(self, source: str, target: str) -> None:
        origin = self.volumes[source]
        volume = self.volumes[target]
        after = self._replaced(target, self.model[source].committed)
        await self.attempt(target, lambda: volume.import_volume(origin), *after)

    async def revert(self, vid: str, index: int) -> None:
        """Revert to the revision with this index; 0 is the oldest."""
        now, volume = self.model[vid], self.volumes[vid]
        self.imports.pop(vid, None)
        revision = list(volume.revisions)[index]
        content = now.states[index]
        after = [base.reverted(content) for base in self._bases(vid)]
        await self.attempt(vid, lambda: volume.revert(revision), *after)

    async def resize(self, vid: str, size: int) -> None:
        now, volume = self.model[vid], self.volumes[vid]
        content = replace(now.current, size=size)
        after, partly = [now.showing(content)], [now.showing(content)]
        if self.halted(vid) and now.keep >= 0:
            shrinks = size < now.current.size and now.keep > 0
            same = size == now.current.size
            bases = self._bases(vid) if shrinks or same else [now]
            after = [
                (
                    base.showing(content).pruned()
                    if same
                    else base.committing(content, base.states)
                )
                for base in bases
            ]
            for base in bases:
                # committed, but not shrunk; or resized, but not committed
                was = base.pruned()
                partly += [was, was.showing(content)]
        await self.attempt(
            vid, lambda: volume.resize(size), *after, refused=tuple(partly)
        )

    async def remove(self, vid: str) -> None:
        qube = vid.split("/")[0]
        going, now = self.guids(vid), self.model[vid]
        self.imports.pop(vid, None)
        if await self.attempt(vid, self.volumes[vid].remove, now.removed()):
            self.removed |= going
        for other in self.vids_of(qube):
            if other != vid:
                await self.volumes[other].remove()

    async def export(self, vid: str) -> None:
        volume, content = self.volumes[vid], self.model[vid].committed
        try:
            path = await volume.export()
        except StoragePoolException:
            if not self.full:
                raise
            self.refused += 1
            return
        reader = open_device(path, os.O_RDONLY)
        self.exports.append(Export(volume, path, content, reader))

    async def export_end(self, index: int) -> None:
        item = self.exports.pop(index)
        item.reader.close()
        if item.orphan:
            await self.collect_garbage()
        else:
            await item.volume.export_end(item.path)

    async def refuse(self, vid: str) -> None:
        """Try operations that the driver must refuse now."""
        volume, now = self.volumes[vid], self.model[vid]
        size = now.current.size
        calls: list[Call] = [lambda: volume.revert("r999999")]
        if not self.halted(vid):
            calls += [
                volume.revert,
                lambda: volume.import_data(size),
                lambda: volume.import_volume(self.volumes["src/private"]),
                lambda: volume.resize(size - MIB),
            ]
        for call in calls:
            try:
                await call()
            except StoragePoolException:
                continue
            raise Violated(f"{vid}: an impossible operation succeeded")
        self._may_be[vid] = (now,)

    # --- qubesd stops and starts

    async def restart(self) -> None:
        """Restart qubesd; running qubes and readers of exports go on."""
        self.imports = {}
        for item in self.exports:
            item.orphan = True
        await abandoned()
        self.lose_memory(False)
        for vid, now in self.model.items():
            if vid.split("/")[0] not in self.running:
                uncommitted = (now,) if self.full else ()
                self._may_be[vid] = (now.stopped(), *uncommitted)
        for vid, volume in self.volumes.items():
            if vid.split("/")[0] not in self.running:
                await volume.stop()
                Path(volume.state_file).unlink(missing_ok=True)
        await self.collect_garbage()

    def end(self) -> None:
        """Close and destroy everything, whatever happened before."""
        for item in self.exports:
            item.reader.close()
        self.relieve()
        for qube in list(self.running):
            self.mark_halted(qube)
        for _ in range(20):
            left = sh("zfs", "destroy", "-R", self.container, check=False)
            if not left:
                return
