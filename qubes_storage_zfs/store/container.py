"""A container: the dataset a pool's volumes are in, and its janitor.

There is one Container for a dataset in a process, however many Pool objects
speak of it (a backup builds a second set of them in qubesd).  What it holds
in memory is only which datasets are in hand here; all else is read from ZFS.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..zfs import channel, devices, errors, lzc
from ..zfs.batch import Batch
from . import holder, naming, policy
from .naming import VolumeName
from .state import NOTHING_MORE, StateQuery, VolumeState
from .state import StateQuery as Question
from .state import VolumeState as State
from .thresholds import Thresholds

LOG = logging.getLogger("qubes.storage.zfs")

# driver/ uses two older names
__all__ = ["Container", "Question", "State", "holder_mark"]


#: bytes, and bytes of a block: a zvol that is made to be measured
_PROBE = (1 << 20, 16384)


def holder_mark() -> dict[str, str]:
    """Return the property that says which process made a dataset."""
    return {naming.HOLDER: holder.mark()}


class Container:
    """The volumes below one dataset.

    :ivar dataset: the container itself, marked with its pool's name
    :ivar home: the dataset below which the qubes' datasets are
    :ivar thresholds: what counts as written there
    """

    _known: ClassVar[dict[tuple[str, str], "Container"]] = {}

    def __init__(self, dataset: str, home: str) -> None:
        self.dataset = dataset
        self.home = home
        #: exports, imports and generations in the making: no garbage
        self.in_hand: set[str] = set()
        #: those of them that export() gave away
        self.exports: set[str] = set()
        #: qubes' datasets that this process created, until a volume is in one
        self.created: set[str] = set()
        #: per volume, the highest generation number given out here
        self._given: dict[VolumeName, int] = {}
        self._swept = False
        self.thresholds = Thresholds(dataset.partition("/")[0])
        #: whether discarded content that no qube has was looked for
        self.is_compared = False
        self.first_check = policy.FirstUse()

    @classmethod
    def at(cls, dataset: str, home: str) -> "Container":
        """The one Container of this process for *dataset*."""
        key = (dataset, home)
        if key not in cls._known:
            cls._known[key] = cls(dataset, home)
        return cls._known[key]

    @classmethod
    def forget_all(cls) -> None:
        """As if the process had just begun; for tests of a restart."""
        cls._known.clear()

    # --- reading

    def _arguments(self, name: VolumeName, asked: StateQuery) -> dict[str, Any]:
        tuned = {"tuned": naming.TUNED} if asked.tuned else {}
        return {
            "container": self.dataset,
            "owner": naming.OWNER,
            "prefix": naming.PREFIX,
            **name.arguments,
            **self.thresholds.arguments,
            **tuned,
            "want": list(asked.want),
            "revisions": asked.revisions,
            "dates": asked.dates,
            "counted": asked.counted,
            **(
                {"rules": policy.as_rules(policy.SAFE)} if asked.checked else {}
            ),
            "writable": asked.writable,
            **asked.made_from(),
        }

    async def state(
        self,
        name: VolumeName,
        asked: StateQuery = NOTHING_MORE,
        batch: Batch | None = None,
    ) -> VolumeState:
        """Ask ZFS about a volume.

        :param batch: ask together with the tasks of this batch
        :raises ZfsError: NoModule or PoolAbsent, mostly
        """
        arguments = self._arguments(name, asked)
        answer = await channel.read("state", self.home, arguments, batch)
        return VolumeState.from_answer(answer)

    def state_now(self, name: VolumeName, asked: StateQuery) -> VolumeState:
        """As state(), for a synchronous property of the API."""
        arguments = self._arguments(name, asked)
        return VolumeState.from_answer(
            channel.ask("state", self.home, arguments)
        )

    # --- making and keeping

    def take(self, name: VolumeName, numbers: Sequence[int], first: int) -> int:
        """A generation number nobody has; it is in hand from now on.

        None is given twice in a process.  Before 2.4 ZFS takes away the node
        of a destroyed zvol later, behind all others that it waits for, and a
        zvol made by that name meanwhile gets none, then or ever
        (zvol_os_create_minor() and zvol_remove_minors_impl()).
        """
        number = max(first - 1, self._given.get(name, -1), *numbers) + 1
        self._given[name] = number
        self.in_hand.add(name.generation(number))
        return number

    async def measure_beside(self, name: VolumeName) -> bool:
        """Measure a zvol that is made for it, and destroyed again.

        :return: whether that is newly known; not where the pool is locked
        """
        if self.thresholds.measured:
            return False
        try:
            state = await self.state(name, StateQuery(counted=True))
            dataset = name.generation(self.take(name, state.numbers, 1))
        except errors.ZfsError:
            return False
        try:
            await lzc.create_volume(dataset, *_PROBE, holder_mark())
        except errors.ZfsError as exc:
            LOG.debug("%s cannot be measured: %s", self.home, exc)
            self.release(dataset)
            return False
        try:
            await self.thresholds.measure(dataset)
        finally:
            await self.discard(dataset)
        return self.thresholds.measured

    def release(self, dataset: str) -> None:
        """It is in nobody's hand here any more."""
        self.in_hand.discard(dataset)
        self.exports.discard(dataset)

    @contextlib.contextmanager
    def held(self, dataset: str) -> Iterator[str]:
        """It is in hand within this: no garbage, and its key is not idle."""
        self.in_hand.add(dataset)
        try:
            yield dataset
        finally:
            self.release(dataset)

    async def discard(self, dataset: str) -> None:
        """Destroy what was in hand; what is busy is left to the janitor."""
        try:
            left = await devices.retry_busy(
                dataset,
                lambda: channel.change(
                    "discard", dataset, {"dataset": dataset}
                ),
            )
            await self.sweep_again(left.values())
        except errors.NotFound:
            pass
        except errors.ZfsError as exc:
            LOG.warning("%s stays for now: %s", dataset, exc)
        finally:
            self.release(dataset)

    # --- the janitor

    async def first_use(self) -> bool:
        """Collect what an earlier process left; once, and never in the way.

        :return: whether ZFS could be asked
        """
        if self._swept:
            return True
        self._swept = True
        try:
            # what anybody wrote before counts as written from here on
            await lzc.sync(self.home)
            await self.sweep()
        except errors.ZfsError as exc:
            self._swept = False
            LOG.debug("garbage in %s not looked for: %s", self.home, exc)
        except BaseException:
            self._swept = False
            raise
        return self._swept

    async def sweep(self, qube: str | None = None) -> list[str]:
        """Destroy what no pointer names, no revision needs and nobody holds.

        :param qube: dataset of one qube; None: all of them
        :return: garbage that stays because somebody has it open
        :raises ZfsError: if ZFS cannot be asked
        """
        found = await self._unnamed(qube)
        if "unsure" in found:
            name = naming.volume_of(self.home, found["unsure"])
            if await self.measure_beside(name):
                found = await self._unnamed(qube)
        living = holder.Living()
        unnamed = found["datasets"].values()
        garbage = [x for x in unnamed if self._is_garbage(x, living)]
        items = [{"name": x["name"], "guid": x["guid"]} for x in garbage]
        empty = list(found["empty"].values())
        if not items and not empty:
            return []
        for item in garbage:
            await lzc.destroy_bookmarks(item["bookmarks"].values())
        done = await channel.change(
            "sweep",
            self.home,
            {
                "home": self.home,
                "prefix": naming.POINTER,
                "holder": naming.HOLDER,
                "datasets": items or {},
                "empty": empty or {},
                "kept": {name: True for name in self.in_hand},
                **self.thresholds.arguments,
            },
        )
        if done["gone"]:
            LOG.info("%s: leftovers removed: %d", self.home, done["gone"])
        await self.sweep_again(done["left"].values())
        return list(done["busy"].values())

    async def _unnamed(self, qube: str | None = None) -> Mapping[str, Any]:
        """What no pointer names; see garbage.lua."""
        question = {
            "home": self.home,
            "prefix": naming.POINTER,
            "holder": naming.HOLDER,
            **self.thresholds.arguments,
        }
        if qube is not None:
            question["qube"] = qube
        found: Mapping[str, Any] = await channel.read(
            "garbage", self.home, question
        )
        return found

    async def in_hand_elsewhere(self) -> list[str]:
        """What other processes that live made for exports and imports.

        :raises ZfsError: if ZFS cannot be asked
        """
        found = await self._unnamed()
        living = holder.Living()
        return [
            item["name"]
            for item in found["datasets"].values()
            if not self._is_garbage(item, living)
        ]

    async def sweep_patiently(self, qube: str) -> None:
        """Sweep one qube again while udev is still probing what is to go.

        What somebody really holds stays, and is named in the log.
        """

        async def once() -> None:
            busy = await self.sweep(qube)
            if busy:
                raise errors.Busy(busy[0], call="destroy")

        try:
            await devices.retry_busy(qube, once)
        except errors.Busy as exc:
            holders = ", ".join(exc.holders) or "nobody that can be seen"
            LOG.warning("%s stays until %s lets go of it", exc.dataset, holders)

    def _is_garbage(
        self, item: Mapping[str, Any], living: holder.Living
    ) -> bool:
        if item["name"] in self.in_hand:
            return False
        mark = item.get("holder")
        return mark is None or not living.is_another(mark)

    def may_collect(self, name: VolumeName, mark: str) -> bool:
        """Whether no process is at work on a volume that no qube has.

        :param mark: of the process that made its current generation
        """
        busy = any(name.number_of(each) is not None for each in self.in_hand)
        return not busy and not holder.Living().is_another(mark)

    @classmethod
    async def sweep_again(cls, datasets: Iterable[str]) -> None:
        """Sweep where these are, whosever they were: they may be garbage."""
        qubes = {dataset.rpartition("/")[0] for dataset in datasets}
        for container in list(cls._known.values()):
            for qube in qubes:
                if qube.startswith(container.home + "/"):
                    await container.sweep_patiently(qube)
