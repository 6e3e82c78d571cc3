# SPDX-License-Identifier: BSD-2-Clause
"""What a volume answers to qubesd's questions: path, usage, revisions, dirty.

qubesd asks synchronously, in its event loop, so each question to ZFS has a
deadline (store/container.py, state_now()).
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
    """The list that is returned instead of revisions that cannot be read.

    An empty list would be untrue.  An exception would end ``qvm-volume list``,
    which shows the volumes of all pools.  So the list has one entry, which is
    no revision and states the reason.

    qubesd passes an id on to revert() only if it is listed, and has no other
    characters than these (core-admin after 4.3).  Each is said to be listed, so
    that revert() refuses it and names the reason.
    """

    _UNSAFE = re.compile(r"[^A-Za-z0-9:._-]+")

    def __init__(self, cause: str) -> None:
        line = self._UNSAFE.sub("_", f"unknown: {cause}").strip("_")
        super().__init__({line: qubes.storage.isodate(0)})

    def __contains__(self, _: object) -> bool:
        return True


class VolumeView:
    """The answers of one volume, and the last ones of ZFS.

    The volume creates it once.  Only the event loop's thread uses it.
    """

    def __init__(self, content: Content, lifecycle: Lifecycle) -> None:
        self._content = content
        self._volume: Volume = content.volume
        self._lifecycle = lifecycle
        #: the last answer to each question
        self._last_states: dict[StateQuery, VolumeState] = {}
        #: number of the current generation, and usage, if they were asked for
        #: since the last operation and no qube uses the volume
        self._last: tuple[int, int] | None = None

    def expire(self) -> None:
        """Ask again for what an operation may change."""
        self._last = None

    def _read(self, query: StateQuery) -> VolumeState:
        """Ask ZFS now.

        If the zpool does not answer in time, or cannot be asked as it is, its
        last answer to the same question is returned, marked as stale.

        :raises ZfsError: if there is none
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
        """Ask as _read(); return None if ZFS cannot be asked, and never was."""
        try:
            state = self._read(query)
        except (ZfsError, naming.BadName):
            return None
        return state if state.container else None

    @property
    def dataset(self) -> str:
        """The zvol that is, or will be, the volume's current generation."""
        state = self._read_or_none()
        return self._content.where.generation((state and state.current) or 0)

    @property
    def path(self) -> str | None:
        """The device node for a qube; None if ZFS cannot be asked for it."""
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
        """Bytes of data in the volume before compression; for a clone made
        at start, bytes that are its own."""
        return self._current()[1]

    def _current(self) -> tuple[int | None, int]:
        """Return the number of the current generation, or of the one that will
        be; None if unknown. And its usage (bytes).

        While its qube is halted only operations change them; and qubesd is
        asked about every volume once a minute, for the disk space widget.
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
        """Return older committed states, oldest first: id -> ISO date (UTC).

        While the qube's stop is in progress the committed state is one of
        them: the commit will make it one, and revert() waits for that.  Else
        "qvm-volume revert" without a revision, which takes the newest that is
        listed, would go back too far.

        No date is earlier than that of a lower number; see dates.py.

        If they cannot be read, one entry states the reason; see Unreadable.
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
        """Return whether a stop in progress makes another revision."""
        lifecycle = self._lifecycle
        keeps = (
            self._volume.revisions_to_keep > 0
            and self._content.reset_to is None
        )
        return keeps and lifecycle.is_stopping and not lifecycle.is_starting

    def committed_ids(self) -> list[str]:
        """Return the ids of all revisions, the committed state's last; none if
        nothing was ever written, or ZFS cannot be asked now."""
        state = self._read_or_none(StateQuery(revisions=True))
        if state is None or state.blank:
            return []
        return [item.id for item in state.revisions]

    def is_dirty(self) -> bool:
        """Return whether there are changes that are not committed."""
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
