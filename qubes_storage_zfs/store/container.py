# SPDX-License-Identifier: BSD-2-Clause
"""A pool's container: its volumes, and the garbage among their datasets.

A process has one Container for each dataset, even if several Pool objects refer
to it: a backup creates a second set of Pool objects in qubesd.  A Container
keeps in memory what ZFS does not know, such as which datasets this process has
reserved.  It reads everything else from ZFS.
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
from .pool_programs import Candidate, Candidates
from .state import NOTHING_MORE, StateQuery, VolumeState
from .thresholds import Thresholds

LOG = logging.getLogger("qubes.storage.zfs")

#: size and block size, in bytes, of the zvol that is created to be measured
_PROBE = (1 << 20, 16384)


def holder_mark() -> dict[str, str]:
    """Return the holder mark of this process, as a property to set."""
    return {naming.HOLDER: holder.mark()}


class Containers:
    """The containers of a process: one Container for each dataset.

    zfs.runtime creates one instance, which exists as long as the process does.
    Only the thread of the event loop uses it.
    """

    def __init__(self) -> None:
        """Start without a container."""
        self._by_place: dict[tuple[str, str], Container] = {}

    def __iter__(self) -> Iterator["Container"]:
        """Iterate over a copy, so that containers can be added meanwhile."""
        return iter(list(self._by_place.values()))

    def at(self, dataset: str, qubes_root: str) -> "Container":
        """Return the Container for *dataset*; create it on the first call.

        :param qubes_root: the qubes root in *dataset*
        """
        place = (dataset, qubes_root)
        if place not in self._by_place:
            self._by_place[place] = Container(dataset, qubes_root, self)
        return self._by_place[place]

    def drop(self, dataset: str, qubes_root: str) -> None:
        """Drop the Container for *dataset*, with everything in its memory."""
        self._by_place.pop((dataset, qubes_root), None)


class Container:
    """The container of a pool: the volumes in it, and their garbage.

    Containers.at() creates it.  It exists until Containers.drop() or the end of
    the process.  Only the thread of the event loop uses it.  Its sets change
    between two awaits, so tasks need no lock.

    :ivar dataset: the container
    :ivar qubes_root: the qubes root in it
    :ivar thresholds: how many bytes count as written there
    :ivar reserved: datasets that this process works on: exports, imports and
        new generations.  They are not garbage
    :ivar exports: the reserved datasets that export() returned to a caller
    :ivar created: qubes' datasets that this process created, until a volume
        exists in them
    :ivar is_compared: whether the driver has looked for disposable volumes of
        qubes that no longer exist
    :ivar first_check: the check of the policy at the first use
    """

    def __init__(
        self, dataset: str, qubes_root: str, others: Iterable["Container"] = ()
    ) -> None:
        """Start with no dataset reserved.

        :param others: all containers of the process, including this one
        """
        self.dataset = dataset
        self._others = others
        self.qubes_root = qubes_root
        self.reserved: set[str] = set()
        self.exports: set[str] = set()
        self.created: set[str] = set()
        #: the highest number that this process used for each volume
        self._last_number: dict[VolumeName, int] = {}
        self._is_first_use_done = False
        #: a volume that may have garbage; see _collect_unsure()
        self._unsure: VolumeName | None = None
        self.thresholds = Thresholds(dataset.partition("/")[0])
        self.is_compared = False
        self.first_check = policy.FirstUse()

    @classmethod
    def at(cls, dataset: str, qubes_root: str) -> "Container":
        """Return the Container of this process for *dataset*."""
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
        """Return the state of a volume, as ZFS reports it.

        :param query: what to report besides the basic state
        :param batch: the batch that the channel program joins
        :raises ZfsError: if ZFS cannot be asked: usually NoModule or PoolAbsent
        """
        return await programs.state(self._query(name, query), batch)

    def state_now(self, name: VolumeName, query: StateQuery) -> VolumeState:
        """Return the same as state(), for a synchronous property of the API."""
        return programs.state_now(self._query(name, query))

    # --- reserved datasets

    def reserve_generation(
        self, name: VolumeName, numbers: Sequence[int], first: int
    ) -> int:
        """Return an unused generation number; reserve its dataset.

        A process uses no number twice for a volume.  OpenZFS before 2.4 removes
        the node of a destroyed zvol later, after other nodes that it waits for.
        A zvol that is created with the same name meanwhile never gets a node
        (zvol_os_create_minor() and zvol_remove_minors_impl()).

        :param numbers: of the generations that exist
        :param first: the lowest number to return
        """
        number = max(first - 1, self._last_number.get(name, -1), *numbers) + 1
        self._last_number[name] = number
        self.reserved.add(name.generation(number))
        return number

    async def measure_beside(self, name: VolumeName) -> bool:
        """Measure a blank zvol, which is created for that and then destroyed.

        In a locked pool no zvol can be created, so nothing is measured.

        :param name: the volume among whose generations the zvol is created
        :return: whether this call has measured; False also if another has
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
            LOG.debug(
                "cannot measure empty zvols in %s: %s", self.qubes_root, exc
            )
            self.unreserve(dataset)
            return False
        try:
            await self.thresholds.measure(dataset)
        finally:
            await self.discard(dataset)
        return self.thresholds.measured

    def unreserve(self, dataset: str) -> None:
        """Stop reserving *dataset*, if it is reserved."""
        self.reserved.discard(dataset)
        self.exports.discard(dataset)

    @contextlib.contextmanager
    def reserve(self, dataset: str) -> Iterator[str]:
        """Reserve *dataset* inside this context.

        It is not garbage then, and its key does not count as idle.
        """
        self.reserved.add(dataset)
        try:
            yield dataset
        finally:
            self.unreserve(dataset)

    async def discard(self, dataset: str) -> None:
        """Destroy a reserved generation that has no pointer.

        If that fails, the failure is logged, and the generation is garbage.
        """
        try:
            left = await devices.retry_busy(
                dataset,
                lambda: programs.discard(dataset),
            )
            await self.collect_near(left)
        except errors.NotFound:
            pass
        except errors.ZfsError as exc:
            LOG.warning(
                "cannot destroy %s now, it is collected later: %s", dataset, exc
            )
        finally:
            self.unreserve(dataset)

    # --- garbage

    async def first_use(self) -> bool:
        """Collect the garbage of earlier processes, once.

        If ZFS cannot be asked, that is logged and the next call tries again.

        :return: whether ZFS could be asked
        """
        if self._is_first_use_done:
            await self._collect_unsure()
            return True
        self._is_first_use_done = True
        try:
            # "written" counts data of finished transaction groups only
            await lzc.sync(self.qubes_root)
            await self.collect_garbage()
        except errors.ZfsError as exc:
            self._is_first_use_done = False
            LOG.debug("cannot look for garbage in %s: %s", self.qubes_root, exc)
        except BaseException:
            self._is_first_use_done = False
            raise
        return self._is_first_use_done

    async def _collect_unsure(self) -> None:
        """Collect garbage again as soon as this process can measure.

        In a locked pool no zvol can be created, so collect_garbage() could not
        decide about the generations of one volume.
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
            LOG.debug("cannot look for garbage in %s: %s", self.qubes_root, exc)

    async def collect_garbage(self, qube: str | None = None) -> list[str]:
        """Destroy the generations that are garbage, and empty qubes' datasets.

        No pointer names them, no revision needs them, and no process that
        lives has reserved them.

        :param qube: dataset of the only qube to check; None: all qubes
        :return: garbage that remains because a process has it open
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
            LOG.warning("destroyed garbage: %s", printable(names))
        await self.collect_near(collected.elsewhere)
        return list(collected.busy)

    async def _candidates(self, qube: str | None = None) -> Candidates:
        """Return the generations that no pointer needs."""
        limits = self.thresholds.limits
        return await pool_programs.garbage(self.qubes_root, limits, qube)

    async def reserved_elsewhere(self) -> list[str]:
        """Return the datasets that other living processes have reserved.

        They are the zvols of exports and imports of those processes.

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
        """Collect the garbage of one qube; retry while udev probes it.

        Garbage that a process keeps open remains, and is named in the log.

        :param qube: the dataset of the qube
        :raises ZfsError: if ZFS cannot be asked
        """

        async def once() -> None:
            busy = await self.collect_garbage(qube)
            if busy:
                raise errors.Busy(busy[0], call="destroy")

        try:
            await devices.retry_busy(qube, once)
        except errors.Busy as exc:
            holders = ", ".join(exc.holders) or "an unknown process"
            LOG.warning(
                "cannot destroy %s now, it is collected later: it is in use by"
                " %s",
                exc.dataset,
                holders,
            )

    def _is_garbage(self, item: Candidate, living: holder.Living) -> bool:
        """Return whether no living process has reserved the generation."""
        if item.name in self.reserved:
            return False
        mark = item.holder
        return mark is None or not living.is_another(mark)

    def may_collect(self, name: VolumeName, mark: str) -> bool:
        """Return whether no process works on a volume that no qube has.

        :param mark: the holder mark of its current generation
        """
        is_reserved = any(
            name.number_of(dataset) is not None for dataset in self.reserved
        )
        return not is_reserved and not holder.Living().is_another(mark)

    async def collect_near(self, datasets: Iterable[str]) -> None:
        """Collect the garbage of the qubes that *datasets* belong to.

        Datasets outside the containers of this process are left alone.

        :raises ZfsError: if ZFS cannot be asked
        """
        qubes = {dataset.rpartition("/")[0] for dataset in datasets}
        for container in self._others:
            for qube in qubes:
                if qube.startswith(container.qubes_root + "/"):
                    await container.collect_patiently(qube)
