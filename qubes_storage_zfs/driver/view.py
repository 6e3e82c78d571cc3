# SPDX-License-Identifier: BSD-2-Clause
"""The attributes of a volume that qubesd reads: path, usage, revisions, dirty.

qubesd reads them synchronously, in its event loop.  So each query of ZFS has a
deadline (``Container.state_now()``).
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import qubes.storage

from ..store import dates, messages, naming
from ..store.state import NOTHING_MORE, MadeFrom, StateQuery, VolumeState
from ..zfs import devices
from ..zfs.errors import NotReadable, ZfsError
from .content import Content
from .interface import Volume
from .lifecycle import Lifecycle


class Listed(dict[str, str]):
    """The revisions of a volume, which also "contains" the committed state.

    qubesd answers a request for an id that the list does not contain with an
    empty response.  While a stop is in progress, the committed state is listed.
    If that stop commits nothing, it is not listed any more.  A client may
    request it then, and revert() states the reason for the refusal.

    VolumeView creates it for each call of revisions().

    :ivar committed: id of the committed state; None if there is none
    """

    def __init__(self, listed: Mapping[str, str], committed: str | None):
        """Take the revisions.

        :param listed: id -> ISO date
        """
        super().__init__(listed)
        self.committed = committed

    def __contains__(self, revision: object) -> bool:
        """Return whether *revision* is listed, or the committed state."""
        if revision is not None and revision == self.committed:
            return True
        return super().__contains__(revision)


class Unreadable(dict[str, str]):
    """The list of revisions if they cannot be read.

    An empty list would be wrong.  An exception would stop ``qvm-volume list``,
    which lists the volumes of all pools.  So the list has one entry, which is
    not a revision and states the reason.

    qubesd passes an id to revert() only if the list contains it, and if it has
    only letters, digits and ``:._-`` (core-admin after 4.3).  This list
    contains each id, so that revert() refuses the id and states the reason.
    """

    _UNSAFE = re.compile(r"[^A-Za-z0-9:._-]+")

    def __init__(self, cause: str) -> None:
        """Build the entry.

        :param cause: the reason why the revisions cannot be read
        """
        line = self._UNSAFE.sub("_", f"unknown: {cause}").strip("_")
        super().__init__({line: qubes.storage.isodate(0)})

    def __contains__(self, _: object) -> bool:
        """Return True."""
        return True


class VolumeView:
    """The attributes of one volume, and a cache of the states they come from.

    The volume creates it, and it lasts as long as the volume.  Only the thread
    of the event loop uses it.
    """

    def __init__(self, content: Content, lifecycle: Lifecycle) -> None:
        """Start with an empty cache."""
        self._content = content
        self._volume: Volume = content.volume
        self._lifecycle = lifecycle
        #: the last state that each query returned
        self._last_states: dict[StateQuery, VolumeState] = {}
        #: number of the current generation, and usage in bytes; None: read them
        #: again.  Valid while no qube uses the volume
        self._last: tuple[int, int] | None = None

    def expire(self) -> None:
        """Drop cached values that an operation may change."""
        self._last = None

    def _read(self, query: StateQuery) -> VolumeState:
        """Read the state of the volume within a deadline.

        If the zpool does not answer in time, or cannot be read now, return the
        last state for the same query, marked as stale.

        :raises ZfsError: if there is no such state
        :raises BadName: if the vid cannot be a name in ZFS
        """
        content = self._content
        try:
            state = content.store.state_now(content.where, query)
        except NotReadable:
            if query not in self._last_states:
                raise
            return replace(self._last_states[query], stale=True)
        self._last_states[query] = state
        return state

    def _read_or_none(
        self, query: StateQuery = NOTHING_MORE
    ) -> VolumeState | None:
        """Read the state as _read() does; None if it cannot be read."""
        try:
            state = self._read(query)
        except (ZfsError, naming.BadName):
            return None
        return state if state.container else None

    @property
    def dataset(self) -> str:
        """The current generation, or the first one if there is none yet."""
        state = self._read_or_none()
        return self._content.where.generation((state and state.current) or 0)

    @property
    def path(self) -> str | None:
        """The path of the device for the qube; None if it cannot be read."""
        number = self._lifecycle.generation
        if number is None:
            number, _ = self._current()
        if number is None:
            return None
        try:
            return devices.link(self._content.where.generation(number))
        except naming.BadName:
            return None

    @property
    def usage(self) -> int:
        """The usage in bytes.

        For a clone that start() made, it is the space that only the clone uses.
        For any other volume it is the data before compression.
        """
        return self._current()[1]

    def _current(self) -> tuple[int | None, int]:
        """Return the number of the current generation, and its usage in bytes.

        The number is 0 if there is no generation, and None if unknown.

        While the qube is halted, only operations change them, so they are
        cached.  The disk space widget of Qubes reads all volumes each minute.
        """
        in_use = self._lifecycle.in_use
        if self._last is not None and not in_use:
            return self._last
        kind = "used" if self._volume.snap_on_start else "logicalreferenced"
        state = self._read_or_none(StateQuery((kind,)))
        if state is None:
            return None, 0
        if state.current is None:
            return 0, 0
        current = state.current, int(state.properties.get(kind, 0))
        if not in_use and not state.stale:
            self._last = current
        return current

    def revisions(self) -> dict[str, str]:
        """Return the revisions, oldest first: id -> ISO date (UTC).

        While a stop is in progress, the committed state is listed, too.  The
        stop commits, which makes it a revision, and revert() waits for the
        stop.  ``qvm-volume revert`` without a revision takes the newest that is
        listed, and would otherwise revert one revision too far.

        No date is earlier than the date of a lower number; see dates.py.

        If the revisions cannot be read, one entry states the reason; see
        Unreadable.
        """
        volume = self._volume
        if not volume.save_on_stop:
            return {}
        try:
            state = self._read(StateQuery(revisions=True, dates=True))
        except naming.BadName:
            return {}
        except ZfsError as exc:
            return Unreadable(messages.reason(exc))
        if not state.container:
            container = volume.pool.container
            cause = messages.CONTAINER_MISSING.format(dataset=container)
            return Unreadable(cause)
        if self._commits_soon():
            listed = state.revisions[-volume.revisions_to_keep :]
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
        """Return whether a stop in progress will make another revision."""
        lifecycle = self._lifecycle
        keeps = (
            self._volume.revisions_to_keep > 0
            and self._content.reset_to is None
        )
        return keeps and lifecycle.is_stopping and not lifecycle.is_starting

    def committed_ids(self) -> list[str]:
        """Return the ids of all revisions, then that of the committed state.

        The list is empty if nothing was ever written, or ZFS cannot be read.
        """
        state = self._read_or_none(StateQuery(revisions=True))
        if state is None or state.blank:
            return []
        return [item.id for item in state.revisions]

    def is_dirty(self) -> bool:
        """Return whether the content has changes that are not committed."""
        volume = self._volume
        if not volume.save_on_stop:
            return False
        if volume.is_running():
            return True
        state = self._read_or_none(StateQuery(revisions=True))
        if state is None or volume.snapshots_disabled:
            return False
        return state.dirty

    def is_outdated(self) -> bool:
        """Return whether the source was committed since the qube started."""
        if not self._volume.snap_on_start or not self._lifecycle.in_use:
            return False
        state = self._read_or_none(
            StateQuery(made_from=MadeFrom(source=self._content.source))
        )
        return state is not None and state.is_up_to_date is False
