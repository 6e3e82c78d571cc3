"""A container: the dataset a pool's volumes are in, and its janitor.

There is one Container for a dataset in a process, however many Pool objects
speak of it (a backup builds a second set of them in qubesd).  What it holds
in memory is only which datasets are in hand here; all else is read from ZFS.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..zfs import channel, devices, errors, lzc
from . import holder, naming, policy
from .naming import VolumeName
from .thresholds import Thresholds

LOG = logging.getLogger("qubes.storage.zfs")


@dataclass(frozen=True)
class Revision:
    """A committed state of a volume."""

    number: int
    snapshot: str
    #: seconds since the epoch; 0 if not asked for
    creation: int

    @property
    def id(self) -> str:
        return f"r{self.number}"


@dataclass(frozen=True)
class Question:
    """What to ask about a volume, besides what is always told.

    :ivar want: native properties of its current generation
    :ivar revisions: what was committed, and what follows from it
    :ivar dates: when that was, instead of what follows
    :ivar counted: the numbers of its generations, if one is to be made
    :ivar tuned: what its qube's features set on the current one
    :ivar writable: what keeps it from being written to
    :ivar size: of a volume that nobody keeps, if it is made now; text that
        says all that a blank one is made by
    :ivar source: of such a one: the volume that it is cloned from
    :ivar checked: whether its properties are allowed (State.wrong)
    """

    want: Sequence[str] = ()
    revisions: bool = False
    dates: bool = False
    counted: bool = False
    tuned: bool = False
    writable: bool = False
    size: str | None = None
    source: VolumeName | None = None
    checked: bool = False

    def made_from(self) -> dict[str, Any]:
        """Size and source, as the programs take them."""
        arguments: dict[str, Any] = {}
        if self.size is not None:
            arguments["size"] = self.size
        if self.source is not None:
            arguments["source"] = {
                "qube": self.source.dataset,
                "committed": self.source.committed,
            }
        return arguments


NOTHING_MORE = Question()

#: bytes, and bytes of a block: a zvol that is made to be measured
_PROBE = (1 << 20, 16384)


@dataclass(frozen=True)
class State:
    """What ZFS says of one volume at one instant (program state.lua)."""

    #: False if the container itself is missing
    container: bool
    #: not told with dates
    owner: str | None
    #: whether the qube's dataset exists; and whether ZFS would mount it
    qube: bool
    mountable: bool
    #: of all generations, if asked for and one is to be made
    numbers: Sequence[int]
    #: whether a container without owner was received without its properties
    bare: bool
    #: number of the current generation; None if there is no such volume
    current: int | None
    #: whether nobody keeps the content of the current generation
    scratch: bool = False
    #: whether it can be taken back to what would be made now
    usable: bool = False
    #: whether it must be; what was written lately may not count yet
    touched: bool = False
    #: whether it is a clone of the source's committed state, if there is one
    fresh: bool | None = None
    #: the snapshot that is the committed state
    committed: str | None = None
    #: oldest first; the last is the committed state
    revisions: Sequence[Revision] = ()
    #: whether it is as create() made it: never written to
    blank: bool = False
    #: whether the current content differs from the committed state; what was
    #: written lately may not count yet
    dirty: bool = False
    #: whether it is dirty only until this process has measured a blank volume
    unsure: bool = False
    #: whether what only an export or clone needed was left by a crash
    frozen: bool = False
    #: what it was reset to when a qube started, and the number of the
    #: revision that is no more than that; with revisions
    begun_from: str | None = None
    begun: int | None = None
    #: what its qube's features set on the current generation, if asked for
    tuned: str | None = None
    #: a property that is not allowed, if asked for; see policy.NotAllowed
    wrong: Mapping[str, Any] | None = None
    #: the dataset where readonly=on is set, if asked for and it is
    read_only_by: str | None = None
    #: native properties of the current generation, as asked for
    properties: Mapping[str, Any] = field(default_factory=dict)
    #: whether it is an earlier answer, because the zpool gives none now
    stale: bool = False


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

    def _arguments(self, name: VolumeName, asked: Question) -> dict[str, Any]:
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
        self, name: VolumeName, asked: Question = NOTHING_MORE
    ) -> State:
        """Ask ZFS about a volume.

        :raises ZfsError: NoModule or PoolAbsent, mostly
        """
        arguments = self._arguments(name, asked)
        return _state(await channel.read("state", self.home, arguments))

    def state_now(self, name: VolumeName, asked: Question) -> State:
        """As state(), for a synchronous property of the API."""
        arguments = self._arguments(name, asked)
        return _state(channel.ask("state", self.home, arguments))

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
            state = await self.state(name, Question(counted=True))
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


def _state(answer: Mapping[str, Any]) -> State:
    return State(
        container=not answer.get("missing"),
        owner=answer.get("owner"),
        qube=bool(answer.get("qube")),
        mountable=bool(answer.get("mountable", True)),
        numbers=list(answer.get("numbers", {}).values()),
        bare=bool(answer.get("bare")),
        current=answer.get("current"),
        scratch=bool(answer.get("scratch")),
        usable=bool(answer.get("usable")),
        committed=answer.get("committed"),
        touched=bool(answer.get("touched")),
        fresh=answer.get("fresh"),
        revisions=[
            Revision(item["number"], item["snapshot"], item.get("creation", 0))
            for _, item in sorted(
                answer.get("revisions", {}).items(),
                key=lambda pair: int(pair[0]),
            )
        ],
        blank=bool(answer.get("blank")),
        dirty=bool(answer.get("dirty")),
        unsure=bool(answer.get("unsure")),
        frozen=bool(answer.get("frozen")),
        begun_from=answer.get("begun_from"),
        begun=answer.get("begun"),
        tuned=answer.get("tuned"),
        wrong=answer.get("wrong"),
        read_only_by=answer.get("read_only_by"),
        properties=answer.get("properties", {}),
    )
