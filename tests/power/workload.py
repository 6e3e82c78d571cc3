# SPDX-License-Identifier: BSD-2-Clause
"""In the guest: qubes that live, several at once, until the power goes.

Before each verb "begin" is told to the host and "end" after it, so the host
knows which states are legal at any instant.
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
from .guest import APPS, BLOCKS, KEPT, TEMPLATE, House, say


async def _opened(path: str) -> BinaryIO:
    return await asyncio.to_thread(open_device, path, os.O_RDWR)


class Qube:
    """One qube with a volume that is kept.

    :ivar vid: that volume
    :ivar still: held while its committed state changes or is cloned
    """

    def __init__(self, house: House, vid: str, cut: int, seed: str) -> None:
        self.house = house
        self.vid = vid
        self.name = vid.partition("/")[0]
        self.cut = cut
        self.dice = random.Random(f"{seed}/{vid}")
        self.still = asyncio.Lock()
        self.others: list[Qube] = []
        self.there = False
        #: says "synced" and does nothing: the host must find it out
        self.lies = False
        self._contents = 0

    @property
    def volume(self) -> Any:
        return self.house.volumes[self.vid]

    def _content(self) -> str:
        """The name of a content there never was."""
        self._contents += 1
        return f"{self.vid}#{self.cut}.{self._contents}"

    async def _states(self) -> int:
        volume = self.volume
        state = await volume.generations.state(StateQuery(revisions=True))
        return len(state.revisions)

    async def verb(
        self, verb: str, act: Callable[[], Awaitable[object]], **what: Any
    ) -> None:
        """Do something with the kept volume, and tell the host."""
        say("begin", vid=self.vid, verb=verb, **what)
        await act()
        say("end", vid=self.vid, states=await self._states())

    async def read(self, vid: str, **what: Any) -> None:
        content = await check.read(self.house.volumes[vid].path)
        say("read", vid=vid, content=content, blocks=BLOCKS, **what)

    # --- verbs

    async def create(self) -> None:
        async with self.still:
            volume = self.house.volume(self.vid)
            await self.verb("create", volume.create, blocks=BLOCKS)
            self.there = True

    async def remove(self) -> None:
        async with self.still:

            async def act() -> None:
                await self.volume.stop()
                await self.volume.remove()

            await self.verb("remove", act)
            self.there = False

    async def session(self) -> None:
        """The qube starts, writes and stops."""
        scratch = []
        if self.name in APPS:
            scratch.append(self.house.volumes[f"{self.name}/volatile"])
        template = next((q for q in self.others if q.vid == TEMPLATE), None)
        async with contextlib.AsyncExitStack() as stack:
            if self.name in APPS and template is not None:
                await stack.enter_async_context(template.still)
                if template.there and self.dice.random() < 0.6:
                    scratch.append(self.house.volumes[f"{self.name}/root"])
            await asyncio.gather(
                self.verb("start", self.volume.start),
                *(each.start() for each in scratch),
            )
            for each in (self.volume, *scratch):
                Path(each.state_file).touch()
            for each in scratch:
                source = {} if each.source is None else {"of": TEMPLATE}
                await self.read(each.vid, **source)
        await self.read(self.vid, of=self.vid)
        with contextlib.ExitStack() as files:
            devices = [
                files.enter_context(await _opened(each.path))
                for each in (self.volume, *scratch)
            ]
            for _ in range(self.dice.randint(0, 5)):
                await self.write(devices[0].fileno())
                for device in devices[1:]:
                    junk = tags.extent("junk", 0, self.dice.randint(1, 32))
                    await asyncio.to_thread(os.pwrite, device.fileno(), junk, 0)
        async with self.still:
            await asyncio.gather(
                self.verb("stop", self.volume.stop),
                *(each.stop() for each in scratch),
            )
            for each in (self.volume, *scratch):
                Path(each.state_file).unlink()

    async def write(self, device: int) -> None:
        """Some extents; in half of the cases on disk when it ends."""
        content, dice, extents = self._content(), self.dice, []
        for _ in range(dice.randint(1, 6)):
            first = dice.randrange(BLOCKS)
            extents.append(
                (first, min(dice.choice((1, 2, 5, 64)), BLOCKS - first))
            )

        async def act() -> None:
            for first, count in extents:
                data = tags.extent(content, first, count)
                offset = first * tags.BLOCK
                await asyncio.to_thread(os.pwrite, device, data, offset)

        async def sync() -> None:
            if not self.lies:
                await asyncio.to_thread(os.fsync, device)

        await self.verb("write", act, content=content, extents=extents)
        if dice.random() < 0.6:
            await self.verb("sync", sync)

    async def import_data(self) -> None:
        content = self._content()
        success = self.dice.random() < 0.75

        async def act() -> None:
            path = await self.volume.import_data(BLOCKS * tags.BLOCK)
            data = tags.extent(content, 0, BLOCKS)
            with await _opened(path) as device:
                await asyncio.to_thread(device.write, data)
            await self.volume.import_data_end(success)

        verb = "import" if success else "give up import"
        async with self.still:
            await self.verb(verb, act, content=content, blocks=BLOCKS)
            if success:
                await self.read(self.vid, of=self.vid)

    async def clone(self) -> None:
        """Take over the committed state of another qube, running or not."""
        source = self.dice.choice(self.others)
        first, second = sorted((self, source), key=lambda qube: qube.vid)
        async with first.still, second.still:
            if not source.there:
                return
            await self.verb(
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
        async with self.still:
            await self.verb(
                "revert",
                lambda: self.volume.revert(revisions[index]),
                index=index,
            )
            await self.read(self.vid, of=self.vid)

    async def export(self) -> None:
        async with self.still:
            path = await self.volume.export()
            content = await check.read(path)
            what = {"of": self.vid, "blocks": BLOCKS}
            say("read", vid=f"{self.vid} exported", content=content, **what)
            await self.volume.export_end(path)

    # --- life

    async def live(self, others: list["Qube"], revert_first: bool) -> None:
        self.others = others
        if revert_first and self.there:
            await self.revert(oldest=True)
        while True:
            await asyncio.sleep(self.dice.random() * 0.05)
            if not self.there:
                await self.create()
                continue
            act = self.dice.choices(
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
            await act()


async def run(house: House, seed: str, cut: int, lies: bool) -> None:
    """All qubes at once, for ever.

    :param lies: see Qube.lies
    """
    qubes = [Qube(house, vid, cut, seed) for vid in KEPT]
    there = {volume.vid for volume in house.pool.list_volumes()}
    for qube in qubes:
        qube.there = qube.vid in there
        qube.lies = lies
    say("ready")
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
