"""A volume of a qube: its life, to be read like the table in doc/design.md.

A volume is a set of generations (zvols) and one pointer.  Whatever replaces
its content builds a new generation beside the current one and then moves the
pointer, in one transaction group; so a verb that stops half-way leaves the
volume as it was, and something for the janitor.
"""

import contextlib
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import qubes.exc
import qubes.storage

from ..store import dates, messages, naming, options
from ..store.container import Question, State
from ..zfs import channel, commands, devices
from ..zfs.errors import NotReadable, ZfsError
from . import errors, halting
from .errors import refusal, told
from .session import Session
from .transfer import locked

LOG = logging.getLogger("qubes.storage.zfs")

_BASE_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(
        qubes.storage.Volume.__init__
    ).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "self"
)


class Listed(dict[str, str]):
    """Revisions as qubesd lists them, and the committed state besides.

    qubesd answers a request for an id that is not listed with an empty
    response. The committed state is listed while a stop is in progress, and not
    any more if that stop made no revision of it. So a client can name it a
    moment later; revert() then names the reason.

    :ivar committed: id of the committed state; None if there is none
    """

    def __init__(self, listed: Mapping[str, str], committed: str | None):
        super().__init__(listed)
        self.committed = committed

    def __contains__(self, revision: object) -> bool:
        if revision is not None and revision == self.committed:
            return True
        return super().__contains__(revision)


class Unreadable(dict[str, str]):
    """What is listed instead of revisions that cannot be read.

    An empty list would be untrue.  An exception would end ``qvm-volume list``,
    which shows the volumes of all pools.  So the list has one entry, which is
    no revision and says why.

    qubesd passes an id on to revert() only if it is listed, and has no other
    characters than these (core-admin after 4.3).  Each is said to be listed, so
    that revert() refuses it and names the reason.
    """

    _UNSAFE = re.compile(r"[^A-Za-z0-9:._-]+")

    def __init__(self, why: str) -> None:
        line = self._UNSAFE.sub("_", f"unknown: {why}").strip("_")
        super().__init__({line: qubes.storage.isodate(0)})

    def __contains__(self, _: object) -> bool:
        return True


class ZfsVolume(Session):
    """One volume of a qube, on zvols.

    =========  ======================  ==================  =================
    verb       volatile                private             root of an AppVM
    =========  ======================  ==================  =================
    create     nothing                 zvol and @r1        nothing
    start      fresh zvol              nothing             clone of source
    stop       taken back to @s1       next revision       taken back to @s1
    =========  ======================  ==================  =================

    """

    def __init__(
        self, *, snap_on_start_forensics: bool = False, **config: Any
    ) -> None:
        base = {key: config[key] for key in config if key in _BASE_OPTIONS}
        #: attributes of a newer driver, written back as they came
        self._unknown = {
            key: config[key] for key in config if key not in _BASE_OPTIONS
        }
        self.snap_on_start_forensics = snap_on_start_forensics
        # core-admin 4.3 hands over every value but True as text
        if base.get("ephemeral") == "False":
            base["ephemeral"] = False
        #: the last answers to what synchronous properties ask
        self._answers: dict[Question, State] = {}
        super().__init__(**base)

    # --- what and where

    @property
    def persistent(self) -> bool:
        return bool(self.save_on_stop) and not self.snap_on_start

    def _ask(self, *want: str, **asked: Any) -> State:
        """Ask ZFS now, for a synchronous property.

        If the zpool does not answer in time, or cannot be asked as it is, its
        last answer to the same question is returned, marked as stale.

        :param asked: as Question has it
        :raises ZfsError: if there is none
        :raises BadName: if the vid cannot be a name in ZFS
        """
        question = Question(want, **asked)
        try:
            state = self.store.state_now(self.where, question)
        except NotReadable:
            if question not in self._answers:
                raise
            return replace(self._answers[question], stale=True)
        self._answers[question] = state
        return state

    def _state_now(self, *want: str, **asked: Any) -> State | None:
        """As _ask(); None if ZFS cannot be asked now, and never was."""
        try:
            state = self._ask(*want, **asked)
        except (ZfsError, naming.BadName):
            return None
        return state if state.container else None

    @property
    def dataset(self) -> str:
        """The zvol that is, or will be, this volume's current generation."""
        state = self._state_now()
        return self.where.generation((state and state.current) or 0)

    @property
    def path(self) -> str | None:
        """The device node that a qube is given; None if ZFS cannot be asked
        which one that is."""
        number = self._given
        if number is None:
            number, _ = self._asked_if_changed()
        if number is None:
            return None
        try:
            return devices.link(self.where.generation(number))
        except naming.BadName:
            return None

    @property
    def revisions_to_keep(self) -> int:
        return self._revisions_to_keep

    @revisions_to_keep.setter
    def revisions_to_keep(self, value: Any) -> None:
        """qubesd sets it to any number from -1 on; one that a channel program
        cannot take would be found out only when the qube stops."""
        try:
            self._revisions_to_keep = options.parse_revisions(value)
        except options.BadOption as exc:
            raise qubes.exc.QubesValueError(errors.plain(str(exc))) from exc

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {**self._unknown, **super().config}
        if self.snap_on_start_forensics:
            config["snap_on_start_forensics"] = True
        # as text: core-admin 4.3 writes no attribute that is False
        if config.get("ephemeral") is False:
            config["ephemeral"] = "False"
        return config

    @property
    def size(self) -> int:
        """Bytes; what the verbs of this process made it, not asked of ZFS:
        qubesd reads it for every volume each time it writes qubes.xml."""
        if self.source is not None:
            return int(self._session_size or self.source.size)
        return int(self._size)

    def _size_is_of_source(self) -> str:
        source = self.source
        name = f"{source.qube}:{source.name}" if source.qube else source.vid
        return messages.SIZE_OF_SOURCE.format(source=name)

    @property
    def usage(self) -> int:
        """Bytes of data in the volume before compression; for a clone made
        at start, bytes that are its own."""
        _, usage = self._asked_if_changed()
        return usage

    def _asked_if_changed(self) -> tuple[int | None, int]:
        """The number of the current generation, or of the one that will be;
        None if unknown. And its usage (bytes).

        While its qube is halted only verbs change them; and qubesd is asked
        about every volume once a minute, for the disk space widget.
        """
        in_use = self._in_use()
        if self._known is not None and not in_use:
            return self._known
        kind = "used" if self.snap_on_start else "logicalreferenced"
        state = self._state_now(kind)
        if state is None:
            return None, 0
        if state.current is None:
            return 0, 0
        found = state.current, int(state.properties.get(kind, 0))
        if not in_use and not state.stale:
            self._known = found
        return found

    @property
    def revisions(self) -> dict[str, str]:
        """Older committed states, oldest first: id -> ISO date (UTC).

        While the qube's stop is in progress the committed state is one of
        them: the commit will make it one, and revert() waits for that.  Else
        "qvm-volume revert" without a revision, which takes the newest that is
        listed, would go back too far.

        No date is earlier than that of a lower number; see dates.py.

        If they cannot be read, one entry says why; see Unreadable.
        """
        if not self.save_on_stop:
            return {}
        try:
            state = self._ask(revisions=True, dates=True)
        except naming.BadName:
            return {}
        except ZfsError as exc:
            return Unreadable(messages.reason(exc))
        if not state.container:
            container = self.pool.container
            why = messages.CONTAINER_MISSING.format(dataset=container)
            return Unreadable(why)
        if self._commits_soon():
            listed = state.revisions[-self.revisions_to_keep :]
        else:
            listed = state.revisions[:-1]
        times = dates.rising(revision.creation for revision in listed)
        committed = state.revisions[-1].id if state.revisions else None
        return Listed(
            {
                revision.id: qubes.storage.isodate(seconds)
                for revision, seconds in zip(listed, times, strict=True)
            },
            committed,
        )

    def _commits_soon(self) -> bool:
        """Return whether a stop in progress makes another revision."""
        keeps = self.revisions_to_keep > 0 and self._reset_to is None
        return keeps and self.is_stopping() and not self._is_starting()

    def committed_ids(self) -> list[str]:
        """Ids of all revisions, the committed state's last; none if nothing
        was ever written, or ZFS cannot be asked now."""
        state = self._state_now(revisions=True)
        if state is None or state.blank:
            return []
        return [item.id for item in state.revisions]

    def is_dirty(self) -> bool:
        if not self.save_on_stop:
            return False
        if self.is_running():
            return True
        state = self._state_now(revisions=True)
        if state is None or self.snapshots_disabled:
            return False
        return state.dirty

    def is_outdated(self) -> bool:
        """Whether the source was committed since the qube started."""
        if not self.snap_on_start or not self._in_use():
            return False
        state = self._state_now(source=self._source)
        return state is not None and state.fresh is False

    async def verify(self) -> bool:
        what = self._cannot("use")
        with told(what):
            state = await self._state()
            if self.snap_on_start:
                # pylint: disable=protected-access
                source = await self.source._state()
                if source.current is None:
                    why = messages.MISSING_SOURCE.format(source=self.source.vid)
                    raise refusal(what, why)
            elif self.save_on_stop:
                self._must_exist(state, what)
        return True

    # --- the lifecycle

    @locked
    async def create(self) -> "ZfsVolume":
        what = self._cannot("create")
        if self.snap_on_start and self.save_on_stop:
            raise refusal(what, messages.BOTH_KINDS)
        with told(what):
            if not self.persistent:
                naming.volume_name(self.pool.home, self.vid)
                return self
            await self._begin()
            state = await self._state_to_open(revisions=True)
            if state.current is not None:
                # whether nothing was written to it
                await self.store.measure_beside(self.where)
                state = await self._state_to_open(revisions=True)
            if state.blank and not self.is_running():
                # qubesd was killed after this, before it wrote qubes.xml
                await self.generations.forget()
                state = await self._state(counted=True)
            elif state.current is not None:
                # qubesd now stops and removes what it could not create
                self._not_ours = True
                dataset = self.where.dataset
                why = messages.VOLUME_EXISTS.format(dataset=dataset)
                raise refusal(what, why)
            await self._adopt_blank(what, state, keep=self.revisions_to_keep)
        return self

    @locked
    async def remove(self) -> "ZfsVolume":
        with told(self._cannot("remove")):
            with channel.together(self._qube_key):
                await self.pool.first_use()
                self._let_go_of_import()
                state = await self._state()
                self._ready, self._due, self._given = False, False, None
                if state.qube and self._owns(state):
                    await self.generations.forget()
            await self._outdate_clones()
            self.pool.unlist(self)
        return self

    # --- going back, and growing

    @halting.after_stop
    @locked
    async def revert(self, revision: str | None = None) -> "ZfsVolume":
        """Go back to a revision; what is left behind becomes one itself.

        :param revision: an id from :py:attr:`revisions`; None: the newest
        """
        what = self._cannot("revert")
        with told(what):
            self._must_be_halted(what)
            await self._begin()
            await self._end_abandoned_import(what)
            state = await self._state_to_open(revisions=True)
            self._must_exist(state, what)
            older = {item.id: item for item in state.revisions[:-1]}
            if revision is None:
                if not older:
                    raise refusal(what, messages.NO_REVISIONS)
                revision = list(older)[-1]
            naming.revision_number(str(revision))
            if revision not in older:
                is_current = revision in {x.id for x in state.revisions}
                template = (
                    messages.REVISION_IS_CURRENT
                    if is_current
                    else messages.NO_REVISION
                )
                why = template.format(revision=revision)
                raise refusal(what, why)
            snapshot = older[revision].snapshot
            await self.generations.adopt_clone(
                lambda: contextlib.nullcontext(snapshot), state, promote=True
            )
            await self._learn_size()
            await self._outdate_clones()
        return self

    @halting.after_stop
    @locked
    async def resize(self, size: int) -> "ZfsVolume":
        """Make the volume *size* bytes large, rounded up to its blocks.

        Shrinking cuts off the end; the committed state from before stays as
        a revision (if the volume keeps any).  A clone made at start has its
        source's size; while its qube runs it can grow, until the qube stops.

        :param size: bytes
        :raises StoragePoolException: if the volume cannot have that size now
        """
        what = self._cannot("resize")
        if not self.rw:
            raise refusal(what, messages.READ_ONLY)
        if self.source is not None and not self._in_use():
            raise refusal(what, self._size_is_of_source())
        with told(what):
            self._rounded(size, what)
            await self._begin()
            keep = self.revisions_to_keep
            running = self._in_use()
            state = await self._state_to_open(
                "volsize", "volblocksize", revisions=True
            )
            block = int(state.properties.get("volblocksize", 0))
            size = self._rounded(size, what, block)
            if not self.save_on_stop and (state.current is None or not running):
                # the next start makes one of that size
                self._size = size
                return self
            current = self._must_exist(state, what)
            before = int(state.properties["volsize"])
            if size < before and self.is_running():
                raise refusal(what, messages.SHRINK_RUNNING)
            halted = self.save_on_stop and not self.is_running()
            if size < before and halted and keep > 0:
                await self.generations.commit(keep)
            if size != before:
                dataset = self.where.generation(current)
                await commands.set_property(dataset, "volsize", str(size))
            # it has that size, even if it cannot be committed now
            if self.source is not None:
                self._session_size = size
                return self
            self._size = size
            if halted and keep >= 0:
                await self.generations.commit(keep)
                await self._outdate_clones()
        return self
