# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: several qubes that work at once until the power is cut.

The guest reports "started" before each operation and "finished" after it.  So
the host knows at any instant which states are allowed.
"""

import asyncio
import contextlib
import os
import random
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

from qubes_storage_zfs.store.state import StateQuery

from ..support.zpools import open_device
from . import check, tags
from .guest import APPS, BLOCKS, KEPT, TEMPLATE, Qubesd, say


async def _opened(path: str) -> BinaryIO:
    return await asyncio.to_thread(open_device, path, os.O_RDWR)


class Qube:
    """One qube with a kept volume.

    :ivar vid: the kept volume
    :ivar commit_lock: locked while its committed state changes or is cloned
    """

    def __init__(self, qubesd: Qubesd, vid: str, cut: int, seed: str) -> None:
        self.qubesd = qubesd
        self.vid = vid
        self.name = vid.partition("/")[0]
        self.cut = cut
        self.dice = random.Random(f"{seed}/{vid}")
        self.commit_lock = asyncio.Lock()
        self.others: list[Qube] = []
        self.exists = False
        #: reports a sync without doing it; the host must notice
        self.is_lying = False
        self._contents = 0

    @property
    def volume(self) -> Any:
        return self.qubesd.volumes[self.vid]

    def _content(self) -> str:
        """Return a name that no other content has."""
        self._contents += 1
        return f"{self.vid}#{self.cut}.{self._contents}"

    async def _states(self) -> int:
        volume = self.volume
        state = await volume.generations.state(StateQuery(revisions=True))
        return len(state.revisions)

    async def operate(
        self,
        operation: str,
        action: Callable[[], Awaitable[object]],
        **fields: Any,
    ) -> None:
        """Do an operation on the kept volume, and report it to the host."""
        say("started", vid=self.vid, operation=operation, **fields)
        await action()
        say("finished", vid=self.vid, states=await self._states())

    async def read(self, vid: str, **fields: Any) -> None:
        content = await check.read(self.qubesd.volumes[vid].path)
        say("read", vid=vid, content=content, blocks=BLOCKS, **fields)

    # --- operations

    async def create(self) -> None:
        async with self.commit_lock:
            volume = self.qubesd.volume(self.vid)
            await self.operate("create", volume.create, blocks=BLOCKS)
            self.exists = True

    async def remove(self) -> None:
        async with self.commit_lock:

            async def action() -> None:
                await self.volume.stop()
                await self.volume.remove()

            await self.operate("remove", action)
            self.exists = False

    async def session(self) -> None:
        """Start the qube, write to its volumes and stop it."""
        disposable = []
        if self.name in APPS:
            disposable.append(self.qubesd.volumes[f"{self.name}/volatile"])
        template = next((q for q in self.others if q.vid == TEMPLATE), None)
        async with contextlib.AsyncExitStack() as stack:
            if self.name in APPS and template is not None:
                await stack.enter_async_context(template.commit_lock)
                if template.exists and self.dice.random() < 0.6:
                    disposable.append(self.qubesd.volumes[f"{self.name}/root"])
            await asyncio.gather(
                self.operate("start", self.volume.start),
                *(volume.start() for volume in disposable),
            )
            for volume in (self.volume, *disposable):
                Path(volume.state_file).touch()
            for volume in disposable:
                source = {} if volume.source is None else {"of": TEMPLATE}
                await self.read(volume.vid, **source)
        await self.read(self.vid, of=self.vid)
        with contextlib.ExitStack() as files:
            devices = [
                files.enter_context(await _opened(volume.path))
                for volume in (self.volume, *disposable)
            ]
            for _ in range(self.dice.randint(0, 5)):
                await self.write(devices[0].fileno())
                for device in devices[1:]:
                    junk = tags.extent("junk", 0, self.dice.randint(1, 32))
                    await asyncio.to_thread(os.pwrite, device.fileno(), junk, 0)
        async with self.commit_lock:
            await asyncio.gather(
                self.operate("stop", self.volume.stop),
                *(volume.stop() for volume in disposable),
            )
            for volume in (self.volume, *disposable):
                Path(volume.state_file).unlink()

    async def write(self, device: int) -> None:
        """Write some extents; sync them in six of ten cases."""
        content, dice, extents = self._content(), self.dice, []
        for _ in range(dice.randint(1, 6)):
            first = dice.randrange(BLOCKS)
            extents.append(
                (first, min(dice.choice((1, 2, 5, 64)), BLOCKS - first))
            )

        async def action() -> None:
            for first, count in extents:
                data = tags.extent(content, first, count)
                offset = first * tags.BLOCK
                await asyncio.to_thread(os.pwrite, device, data, offset)

        async def sync() -> None:
            if not self.is_lying:
                await asyncio.to_thread(os.fsync, device)

        await self.operate("write", action, content=content, extents=extents)
        if dice.random() < 0.6:
            await self.operate("sync", sync)

    async def import_data(self) -> None:
        content = self._content()
        success = self.dice.random() < 0.75

        async def action() -> None:
            path = await self.volume.import_data(BLOCKS * tags.BLOCK)
            data = tags.extent(content, 0, BLOCKS)
            with await _opened(path) as device:
                await asyncio.to_thread(device.write, data)
            await self.volume.import_data_end(success)

        operation = "import" if success else "give up import"
        async with self.commit_lock:
            await self.operate(
                operation, action, content=content, blocks=BLOCKS
            )
            if success:
                await self.read(self.vid, of=self.vid)

    async def clone(self) -> None:
        """Import the committed state of another qube, running or not."""
        source = self.dice.choice(self.others)
        first, second = sorted((self, source), key=lambda qube: qube.vid)
        async with first.commit_lock, second.commit_lock:
            if not source.exists:
                return
            await self.operate(
                "clone",
                lambda: self.volume.import_volume(source.volume),
                of=source.vid,
            )
            await self.read(self.vid, of=self.vid)

    async def revert(self, oldest: bool = False) -> None:
        revisions = list(self.volume.revisions)
        if not revisions:
            return
        index = 0 if oldest else self.dice.randrange(len(revisions))
        async with self.commit_lock:
            await self.operate(
                "revert",
                lambda: self.volume.revert(revisions[index]),
                index=index,
            )
            await self.read(self.vid, of=self.vid)

    async def export(self) -> None:
        async with self.commit_lock:
            path = await self.volume.export()
            content = await check.read(path)
            fields = {"of": self.vid, "blocks": BLOCKS}
            say("read", vid=f"{self.vid} exported", content=content, **fields)
            await self.volume.export_end(path)

    # --- endless work

    async def live(self, others: list["Qube"], revert_first: bool) -> None:
        self.others = others
        if revert_first and self.exists:
            await self.revert(oldest=True)
        while True:
            await asyncio.sleep(self.dice.random() * 0.05)
            if not self.exists:
                await self.create()
                continue
            action = self.dice.choices(
                (
                    self.session,
                    self.import_data,
                    self.clone,
                    self.revert,
                    self.export,
                    self.remove,
                ),
                (45, 15, 13, 13, 4, 10),
            )[0]
            await action()


async def run(qubesd: Qubesd, seed: str, cut: int, is_lying: bool) -> None:
    """Let all qubes work at once, for ever.

    :param is_lying: see Qube.is_lying
    """
    qubes = [Qube(qubesd, vid, cut, seed) for vid in KEPT]
    existing = {volume.vid for volume in qubesd.pool.list_volumes()}
    for qube in qubes:
        qube.exists = qube.vid in existing
        qube.is_lying = is_lying
    say("working")
    chosen = random.Random(seed).choice(qubes)
    lives = [
        asyncio.create_task(
            qube.live([q for q in qubes if q is not qube], qube is chosen)
        )
        for qube in qubes
    ]
    try:
        await asyncio.gather(*lives)
    except Exception:
        say("error", text=traceback.format_exc())
        raise
