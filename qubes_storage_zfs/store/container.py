# SPDX-License-Identifier: BSD-2-Clause
"""A container: the dataset a pool's volumes are in, and its janitor.

There is one Container for a dataset in a process, however many Pool objects
speak of it (a backup builds a second set of them in qubesd).  What it holds
in memory is only which datasets are in hand here; all else is read from ZFS.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..zfs import devices, errors, lzc, runtime
from ..zfs.batch import Batch
from ..zfs.text import printable
from . import holder, naming, policy, pool_programs, programs
from .naming import VolumeName
from .pool_programs import Candidates, Candidate
from .state import NOTHING_MORE, StateQuery, VolumeState
from .thresholds import Thresholds

LOG = logging.getLogger("qubes.storage.zfs")


#: bytes, and bytes of a block: a zvol that is made to be measured
_PROBE = (1 << 20, 16384)


def holder_mark() -> dict[str, str]:
    """Return the property that says which process made a dataset."""
    return {naming.HOLDER: holder.mark()}


class Containers:
    """The containers of a process: one for each dataset.

    The runtime has one instance.
    """

    def __init__(self) -> None:
        self._by_place: dict[tuple[str, str], Container] = {}

    def __iter__(self) -> Iterator["Container"]:
        return iter(list(self._by_place.values()))

    def at(self, dataset: str, qubes_root: str) -> "Container":
        """Return the one Container for *dataset*.

        :param qubes_root: the dataset below which the qubes' datasets are
        """
        place = (dataset, qubes_root)
        if place not in self._by_place:
            self._by_place[place] = Container(dataset, qubes_root, self)
        return self._by_place[place]

    def leave(self, dataset: str, qubes_root: str) -> None:
        """Drop the Container for *dataset*, with what it has in memory."""
        self._by_place.pop((dataset, qubes_root), None)


class Container:
    """The volumes below one dataset.

    :ivar dataset: the container itself, marked with its pool's name
    :ivar qubes_root: the dataset below which the qubes' datasets are
    :ivar thresholds: what counts as written there
    """

    def __init__(
        self, dataset: str, qubes_root: str, others: Iterable["Container"] = ()
    ) -> None:
        self.dataset = dataset
        self._others = others
        self.qubes_root = qubes_root
        #: exports, imports and generations in the making: no garbage
        self.reserved: set[str] = set()
        #: those of them that export() gave away
        self.exports: set[str] = set()
        #: qubes' datasets that this process created, until a volume is in one
        self.created: set[str] = set()
        #: per volume, the highest generation number given out here
        self._last_number: dict[VolumeName, int] = {}
        self._is_first_use_done = False
        #: a volume beside which there may be garbage; see _collect_unsure()
        self._unsure: VolumeName | None = None
        self.thresholds = Thresholds(dataset.partition("/")[0])
        #: whether discarded content that no qube has was looked for
        self.is_compared = False
        self.first_check = policy.FirstUse()

    @classmethod
    def at(cls, dataset: str, qubes_root: str) -> "Container":
        """The one Container of this process for *dataset*."""
        return runtime.of(Containers).at(dataset, qubes_root)

    # --- reading

    def _query(
        self, name: VolumeName, query: StateQuery
    ) -> programs.VolumeQuery:
        return programs.VolumeQuery(
            self.dataset,
            self.qubes_root,
            name,
            self.thresholds.limits,
            query,
            policy.SAFE,
        )

    async def state(
        self,
        name: VolumeName,
        query: StateQuery = NOTHING_MORE,
        batch: Batch | None = None,
    ) -> VolumeState:
        """Ask ZFS about a volume.

        :param batch: ask together with the tasks of this batch
        :raises ZfsError: NoModule or PoolAbsent, mostly
        """
        return await programs.state(self._query(name, query), batch)

    def state_now(self, name: VolumeName, query: StateQuery) -> VolumeState:
        """As state(), for a synchronous property of the API."""
        return programs.state_now(self._query(name, query))

    # --- making and keeping

    def reserve_generation(
        self, name: VolumeName, numbers: Sequence[int], first: int
    ) -> int:
        """A generation number nobody has; it is in hand from now on.

        None is given twice in a process.  Before 2.4 ZFS takes away the node
        of a destroyed zvol later, behind all others that it waits for, and a
        zvol made by that name meanwhile gets none, then or ever
        (zvol_os_create_minor() and zvol_remove_minors_impl()).
        """
        number = max(first - 1, self._last_number.get(name, -1), *numbers) + 1
        self._last_number[name] = number
        self.reserved.add(name.generation(number))
        return number

    async def measure_beside(self, name: VolumeName) -> bool:
        """Measure a zvol that is made for it, and destroyed again.

        :return: whether that is newly known; not where the pool is locked
        """
        if self.thresholds.measured:
            return False
        try:
            state = await self.state(name, StateQuery(counted=True))
            dataset = name.generation(
                self.reserve_generation(name, state.numbers, 1)
            )
        except errors.ZfsError:
            return False
        try:
            await lzc.create_volume(dataset, *_PROBE, holder_mark())
        except errors.ZfsError as exc:
            LOG.debug("%s cannot be measured: %s", self.qubes_root, exc)
            self.unreserve(dataset)
            return False
        try:
            await self.thresholds.measure(dataset)
        finally:
            await self.discard(dataset)
        return self.thresholds.measured

    def unreserve(self, dataset: str) -> None:
        """It is in nobody's hand here any more."""
        self.reserved.discard(dataset)
        self.exports.discard(dataset)

    @contextlib.contextmanager
    def reserve(self, dataset: str) -> Iterator[str]:
        """It is in hand within this: no garbage, and its key is not idle."""
        self.reserved.add(dataset)
        try:
            yield dataset
        finally:
            self.unreserve(dataset)

    async def discard(self, dataset: str) -> None:
        """Destroy what was in hand; what is busy is left to the janitor."""
        try:
            left = await devices.retry_busy(
                dataset,
                lambda: programs.discard(dataset),
            )
            await self.collect_near(left)
        except errors.NotFound:
            pass
        except errors.ZfsError as exc:
            LOG.warning("%s stays for now: %s", dataset, exc)
        finally:
            self.unreserve(dataset)

    # --- the janitor

    async def first_use(self) -> bool:
        """Collect what an earlier process left; once, and never in the way.

        :return: whether ZFS could be asked
        """
        if self._is_first_use_done:
            await self._collect_unsure()
            return True
        self._is_first_use_done = True
        try:
            # what anybody wrote before counts as written from here on
            await lzc.sync(self.qubes_root)
            await self.collect_garbage()
        except errors.ZfsError as exc:
            self._is_first_use_done = False
            LOG.debug("garbage in %s not looked for: %s", self.qubes_root, exc)
        except BaseException:
            self._is_first_use_done = False
            raise
        return self._is_first_use_done

    async def _collect_unsure(self) -> None:
        """Collect what may be garbage, once this process can measure.

        In a locked pool it cannot: no zvol can be created there.
        """
        if self._unsure is None:
            return
        try:
            if self.thresholds.measured or await self.measure_beside(
                self._unsure
            ):
                self._unsure = None
                await self.collect_garbage()
        except errors.ZfsError as exc:
            LOG.debug("garbage in %s not looked for: %s", self.qubes_root, exc)

    async def collect_garbage(self, qube: str | None = None) -> list[str]:
        """Destroy what no pointer names, no revision needs and nobody holds.

        :param qube: dataset of one qube; None: all of them
        :return: garbage that stays because somebody has it open
        :raises ZfsError: if ZFS cannot be asked
        """
        candidates = await self._candidates(qube)
        if candidates.unsure is not None:
            name = naming.volume_of(self.qubes_root, candidates.unsure)
            if await self.measure_beside(name):
                candidates = await self._candidates(qube)
            else:
                self._unsure = name
        living = holder.Living()
        garbage = [
            x for x in candidates.datasets if self._is_garbage(x, living)
        ]
        if not garbage and not candidates.empty:
            return []
        for item in garbage:
            await lzc.destroy_bookmarks(item.bookmarks)
        collected = await pool_programs.collect(
            self.qubes_root,
            self.thresholds.limits,
            replace(candidates, datasets=garbage),
            self.reserved,
        )
        if collected.destroyed:
            names = ", ".join(sorted(collected.destroyed))
            LOG.warning("garbage destroyed: %s", printable(names))
        await self.collect_near(collected.elsewhere)
        return list(collected.busy)

    async def _candidates(self, qube: str | None = None) -> Candidates:
        """What no pointer names."""
        limits = self.thresholds.limits
        return await pool_programs.garbage(self.qubes_root, limits, qube)

    async def reserved_elsewhere(self) -> list[str]:
        """What other processes that live made for exports and imports.

        :raises ZfsError: if ZFS cannot be asked
        """
        candidates = await self._candidates()
        living = holder.Living()
        return [
            item.name
            for item in candidates.datasets
            if not self._is_garbage(item, living)
        ]

    async def collect_patiently(self, qube: str) -> None:
        """Sweep one qube again while udev is still probing what is to go.

        What somebody really holds stays, and is named in the log.
        """

        async def once() -> None:
            busy = await self.collect_garbage(qube)
            if busy:
                raise errors.Busy(busy[0], call="destroy")

        try:
            await devices.retry_busy(qube, once)
        except errors.Busy as exc:
            holders = ", ".join(exc.holders) or "nobody that can be seen"
            LOG.warning("%s stays until %s lets go of it", exc.dataset, holders)

    def _is_garbage(self, item: Candidate, living: holder.Living) -> bool:
        if item.name in self.reserved:
            return False
        mark = item.holder
        return mark is None or not living.is_another(mark)

    def may_collect(self, name: VolumeName, mark: str) -> bool:
        """Whether no process is at work on a volume that no qube has.

        :param mark: of the process that made its current generation
        """
        busy = any(name.number_of(each) is not None for each in self.reserved)
        return not busy and not holder.Living().is_another(mark)

    async def collect_near(self, datasets: Iterable[str]) -> None:
        """Sweep where these are, whosever they were: they may be garbage."""
        qubes = {dataset.rpartition("/")[0] for dataset in datasets}
        for container in self._others:
            for qube in qubes:
                if qube.startswith(container.qubes_root + "/"):
                    await container.collect_patiently(qube)
