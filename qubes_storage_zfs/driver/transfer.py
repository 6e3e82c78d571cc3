"""Data in and out of a volume: export, import, and one volume to another."""

import asyncio
import contextlib
import functools
import weakref
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import qubes.storage
import qubes.utils

from ..store import messages, naming, policy
from ..store.container import Container, State
from ..store.generations import Generations
from ..store.naming import VolumeName
from ..zfs import copy, devices
from ..zfs.errors import ReadOnlyDataset, Unwritten
from . import features, halting
from .errors import refusal, told

if TYPE_CHECKING:
    from .pool import ZfsPool


Method = TypeVar("Method", bound=Callable[..., Any])


def locked(method: Method) -> Method:
    """One such verb of a volume at a time; qubesd's own decorator."""

    @functools.wraps(method)
    async def changing(self: "Transfer", *args: Any, **kwargs: Any) -> Any:
        self._known = None
        if self.replaces is not None:
            await self.replaces.idle()
        try:
            return await method(self, *args, **kwargs)
        finally:
            self._known = None

    return cast(Method, qubes.storage.Volume.locked(changing))


class Transfer(halting.Used):
    """The half of ZfsVolume that moves data."""

    pool: "ZfsPool"
    #: the generation an import is being written to
    _import: str | None = None
    #: whether it replaced one whose client may still come to end it
    _import_replaces: bool = False
    #: the task that began it
    _import_task: "weakref.ref[asyncio.Task[Any]] | None" = None
    #: the object that qubesd had for this volume before
    replaces: "Transfer | None" = None

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        #: number of the current generation, and usage, if they were asked for
        #: since the last verb and no qube has it
        self._known: tuple[int, int] | None = None

    async def idle(self) -> None:
        """Wait until nothing is being prepared."""
        raise NotImplementedError

    # --- what both halves use

    @property
    def where(self) -> VolumeName:
        """:raises BadName: if the vid cannot be a name in ZFS"""
        return naming.volume_name(self.pool.home, self.vid)

    @property
    def store(self) -> Container:
        return self.pool.store

    @property
    def generations(self) -> Generations:
        return Generations(
            self.where, self.store, self.pool.zpool, self._pinned
        )

    @property
    def _reset_to(self) -> str | None:
        """What its qube is to find in it at each start: a revision, or
        tuning.BLANK; None: what it left."""
        return features.reset_to(self._owner, self.name)

    @property
    def _pinned(self) -> int | None:
        """The number of that revision."""
        revision = self._reset_to
        if revision in (None, features.BLANK):
            return None
        return naming.revision_number(str(revision))

    @property
    def blocksize(self) -> int:
        """Bytes; of what is made from now on."""
        wanted = features.wanted(self._owner, self.name)
        return int(wanted.get(features.VOLBLOCKSIZE, self.pool.blocksize))

    def _cannot(self, verb: str) -> str:
        return f"Cannot {verb} {self.vid} in pool {self.pool.name}"

    async def _begin(self) -> None:
        """A person waits for what follows: the key may be asked for."""
        await self.pool.must_be_allowed()
        await self.pool.unlock(self.qube, self.app)
        await self.pool.first_use()

    async def _state(self, *want: str, **asked: Any) -> State:
        """Ask ZFS, and make sure that the answer is about our container.

        :param asked: as Question has it
        :raises StoragePoolException: if the container is not there or not
            this pool's
        """
        state = await self.generations.state(*want, **asked)
        self.pool.check_container(state)
        return state

    async def _state_to_open(self, *want: str, **asked: Any) -> State:
        """As _state(), before the volume is opened or handed out.

        Somebody may have changed a property since the pool was checked.

        :raises NotAllowed: if the volume, or what a new generation of it
            inherits from, has a property that is not allowed
        :raises ReadOnlyDataset: if it is readonly=on, and is to be written to
        """
        asked.update(checked=True, writable=bool(self.rw))
        state = await self._state(*want, **asked)
        if state.wrong is not None:
            raise policy.NotAllowed(self.pool.home, state.wrong)
        if state.read_only_by is not None:
            raise ReadOnlyDataset(state.read_only_by)
        return state

    def _must_exist(self, state: State, what: str) -> int:
        if state.current is None:
            dataset = self.where.dataset
            why = messages.MISSING_VOLUME.format(dataset=dataset)
            raise refusal(what, why)
        return state.current

    def _in_blocks(self, size: int, block: int = 0) -> int:
        """*size* in bytes, rounded up to whole blocks, one at least."""
        block = max(block, self.blocksize)
        return max(1, -(-size // block)) * block

    def _rounded(self, size: Any, what: str, block: int = 0) -> int:
        """As _in_blocks(), of what somebody else gave."""
        try:
            number = int(size)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not 0 <= number <= 1 << 60:
            raise refusal(what, messages.BAD_SIZE.format(size=size))
        return self._in_blocks(number, block)

    async def data_bytes(self) -> int:
        """Return the bytes of data in the volume before compression, 0 if
        there is no such volume.

        :raises ZfsError: if ZFS cannot be asked
        """
        name = "logicalreferenced"
        state = await self.generations.state(name)
        return int(state.properties.get(name, 0))

    async def _learn_size(self) -> None:
        state = await self._state("volsize")
        self._size = int(state.properties["volsize"])

    async def _outdate_clones(self) -> None:
        """What is committed has become another state; see ZfsVolume."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def committed(self) -> AsyncIterator[str]:
        """The snapshot that is the newest committed state, to clone from.

        :raises StoragePoolException: if there is none while the qube runs
        """
        what = self._cannot("read")
        async with contextlib.AsyncExitStack() as stack:
            with told(what):
                await self.pool.must_be_allowed()
                state = await self._state()
                self._must_exist(state, what)
                snapshot = state.committed
                if self.snapshots_disabled:
                    if self.is_running():
                        raise refusal(what, messages.SNAPSHOTS_DISABLED)
                    snapshot = await stack.enter_async_context(
                        self.generations.frozen()
                    )
                elif snapshot is None:
                    snapshot = await self._newest_revision()
            if snapshot is None:
                raise refusal(what, messages.NO_REVISIONS)
            yield snapshot

    async def _newest_revision(self) -> str | None:
        """By looking for it: what was committed is not written down, or was
        destroyed by somebody else."""
        state = await self._state(revisions=True)
        if not state.revisions:
            await self.generations.commit(self.revisions_to_keep)
            state = await self._state(revisions=True)
        return state.revisions[-1].snapshot if state.revisions else None

    # --- data out

    async def export(self) -> str:
        """A device with the newest committed state; the caller's own.

        :raises NotImplementedError: for volumes that keep nothing
        """
        if not self.save_on_stop:
            raise NotImplementedError(
                f"{self.vid} keeps nothing that could be exported"
            )
        what = self._cannot("export")
        await halting.stopped(self)
        if self.snapshots_disabled and self.is_running():
            raise refusal(what, messages.SNAPSHOTS_DISABLED)

        with told(what):
            await self._begin()
            state = await self._state_to_open(counted=True)
            _, dataset = await self.generations.clone(
                self.committed, state, lasting=True
            )
            try:
                path = await devices.wait_for_link(dataset)
            except BaseException:
                await self.store.discard(dataset)
                raise
            self.store.exports.add(dataset)
            return path

    async def export_end(self, path: str) -> None:
        dataset = devices.dataset_of(path)
        if (
            dataset not in self.store.exports
            or self.where.number_of(dataset) is None
        ):
            return
        with told(self._cannot("end the export of")):
            await self.store.discard(dataset)
            self.pool.used()

    # --- data in

    async def _blank(
        self, size: Any, what: str, state: State, lasting: bool
    ) -> tuple[int, str]:
        return await self.generations.blank(
            self._rounded(size, what), self.blocksize, state, lasting
        )

    @halting.after_stop
    @locked
    async def import_data(self, size: int) -> str:
        """A zeroed device to write the new content to.

        :param size: bytes; rounded up to the volume's blocks
        """
        if not self.save_on_stop:
            raise NotImplementedError(
                f"{self.vid} keeps nothing, so nothing can be imported"
            )
        what = self._cannot("import into")
        self._must_be_halted(what)
        with told(what):
            await self._begin()
            replaces = self._import is not None
            await self._end_abandoned_import(what)
            state = await self._state_to_open(counted=True)
            self._must_exist(state, what)
            _, self._import = await self._blank(size, what, state, True)
            self._import_replaces = replaces
            task = asyncio.current_task()
            self._import_task = weakref.ref(task) if task else None
            try:
                return await devices.wait_for_link(self._import)
            except BaseException:
                await self._drop_import()
                raise

    @locked
    async def import_data_end(self, success: bool) -> "Transfer":
        what = self._cannot("finish the import into")
        if self._import is None:
            if success:
                raise refusal(what, messages.NO_IMPORT)
            return self
        with told(what):
            # whoever still writes has not sent this: it is about another,
            # which was taken for abandoned
            who = await devices.lasting_holders(self._import)
            if who and success:
                why = messages.IMPORT_RUNNING.format(holders=", ".join(who))
                raise refusal(what, why)
            if who:
                return self
            number = self.where.number_of(self._import)
            if not success or number is None:
                await self._drop_import()
                return self
            if self.is_running():
                await self._drop_import()
                raise refusal(what, messages.RUNNING)
            dataset, self._import = self._import, None
            try:
                async with devices.flushed(dataset):
                    pass
            except BaseException:
                await self.store.discard(dataset)
                raise
            try:
                await self.generations.adopt(
                    number,
                    keep=self.revisions_to_keep,
                    touched=self._may_be_end_of_another(),
                )
            except Unwritten as exc:
                raise refusal(what, messages.IMPORT_REPLACED) from exc
            await self._learn_size()
            await self._outdate_clones()
        return self

    def _may_be_end_of_another(self) -> bool:
        """Return whether the import that is ended now may be another one.

        A client ends its import with a call of its own, and may come after
        another import has replaced it.  What begins and ends one in the same
        task means that one; core-admin's admin.vm.volume.Clear does so, and
        writes nothing.
        """
        task = self._import_task() if self._import_task else None
        return self._import_replaces and task is not asyncio.current_task()

    async def _drop_import(self) -> None:
        dataset, self._import = self._import, None
        if dataset is not None:
            await self.store.discard(dataset)

    def _let_go_of_import(self) -> None:
        """Nobody will end it; who removes the volume removes it, too."""
        if self._import is not None:
            self.store.release(self._import)
        self._import = None

    async def _end_abandoned_import(self, what: str) -> None:
        """An import whose writer is gone must not block the qube.

        :raises StoragePoolException: if it is being written to
        """
        if self._import is None:
            return
        who = await devices.lasting_holders(self._import)
        if who:
            why = messages.IMPORT_RUNNING.format(holders=", ".join(who))
            raise refusal(what, why)
        await self._drop_import()

    async def import_volume(
        self, src_volume: qubes.storage.Volume
    ) -> "Transfer":
        """Take over the newest committed state of another volume.

        Within a zpool that is a clone, also from one Qubes pool to another;
        else the data is copied, without its zeroes.
        """
        await halting.stopped(self, src_volume)
        return await self._import_volume(src_volume)

    @locked
    async def _import_volume(
        self, src_volume: qubes.storage.Volume
    ) -> "Transfer":
        if not src_volume.save_on_stop or not self.save_on_stop:
            return self
        what = self._cannot(f"copy {src_volume.vid} to")
        self._must_be_halted(what)
        with told(what):
            if src_volume.snapshots_disabled and src_volume.is_running():
                raise refusal(what, messages.SNAPSHOTS_DISABLED)
            await self._begin()
            await self._end_abandoned_import(what)
            state = await self._state_to_open(counted=True)
            self._must_exist(state, what)
            if await self._clonable(src_volume):
                await self.generations.adopt_clone(
                    src_volume.committed, state, keep=self.revisions_to_keep
                )
            else:
                await self._copy_from(src_volume, what, state)
            await self._learn_size()
            await self._outdate_clones()
        return self

    async def _clonable(self, source: qubes.storage.Volume) -> bool:
        """A clone has its origin's key for ever, or none if that has none."""
        if not isinstance(source, Transfer):
            return False
        if source.store is self.store:
            return True
        return (
            source.pool.zpool == self.pool.zpool
            and await source.pool.encryption_root()
            == await self.pool.encryption_root()
        )

    async def _copy_from(
        self, source: qubes.storage.Volume, what: str, state: State
    ) -> None:
        # another driver's properties may be for the event loop's thread only
        needed = (
            await source.data_bytes()
            if isinstance(source, Transfer)
            else int(source.usage)
        )
        free = await self.pool.space.available()
        if free is not None and needed > free:
            why = messages.NO_SPACE_FOR_COPY.format(
                source=source.vid, needed=needed, free=free, pool=self.pool
            )
            raise refusal(what, why)
        path = await qubes.utils.coro_maybe(source.export())
        try:
            number, dataset = await self._blank(source.size, what, state, True)
            try:
                target = await devices.wait_for_link(dataset)
                await copy.sparse_copy(path, target)
            except BaseException:
                await self.store.discard(dataset)
                raise
            await self.generations.adopt(number, keep=self.revisions_to_keep)
        finally:
            await qubes.utils.coro_maybe(source.export_end(path))
