# SPDX-License-Identifier: BSD-2-Clause
"""The lifecycle of a volume in this process: its phase and its use."""

import logging
from typing import ClassVar

from ..store import messages
from ..store.messages import Refused
from ..store.state import VolumeState
from . import halting
from .content import Content
from .interface import Volume
from .phases import TRANSITIONS, Event, Phase

LOG = logging.getLogger("qubes.storage.zfs")


class IllegalEvent(RuntimeError):
    """An event that the phase of a volume does not allow: a defect.

    Lifecycle.fire() raises it in tests only.
    """


class Lifecycle:
    """The lifecycle of one volume in this process.

    The volume creates it, and it lasts as long as the volume.  A qubesd that
    has restarted has new objects, whose phase is UNKNOWN.  In that phase each
    decision is made from the disk and from qubesd's record of running volumes.

    Only fire() changes the phase, by this table.  ``=`` marks an event that
    does not change the phase, a dot an event that is not legal.

    ============= ========== ========== ========== ========== ==========
    event         UNKNOWN    HALTED     TO_PREPARE PREPARING  PREPARED
    ============= ========== ========== ========== ========== ==========
    CREATED       HALTED     =          .          .          .
    FOUND_FOREIGN FOREIGN    FOREIGN    .          .          .
    START         =          =          HALTED     .          HALTED
    STARTED       IN_USE     IN_USE     IN_USE     .          .
    STOP          =          =          HALTED     .          HALTED
    STOPPED       HALTED     =          =          .          .
    GIVE_UP       ABANDONED  .          .          .          .
    PREPARE       TO_PREPARE TO_PREPARE =          TO_PREPARE TO_PREPARE
    PREPARING     .          .          PREPARING  .          .
    PREPARED      .          PREPARED   =          PREPARED   .
    DISCARDED     .          .          .          HALTED     HALTED
    REMOVE        REMOVED    REMOVED    REMOVED    .          REMOVED
    ============= ========== ========== ========== ========== ==========

    ============= ========= ========== ======= =======
    event         IN_USE    ABANDONED  FOREIGN REMOVED
    ============= ========= ========== ======= =======
    CREATED       .         HALTED     HALTED  HALTED
    FOUND_FOREIGN =         FOREIGN    =       FOREIGN
    START         =         =          .       UNKNOWN
    STARTED       =         IN_USE     .       .
    STOP          =         UNKNOWN    =       UNKNOWN
    STOPPED       HALTED    HALTED     =       .
    GIVE_UP       ABANDONED .          .       .
    PREPARE       .         TO_PREPARE .       .
    PREPARING     .         .          .       .
    PREPARED      .         .          .       .
    DISCARDED     .         .          .       .
    REMOVE        REMOVED   REMOVED    REMOVED =
    ============= ========= ========== ======= =======

    An operation has the lock of the volume, so the events of operations are in
    order.  Only PREPARE and GIVE_UP come at any time.  If a preparation is
    requested while another one runs, it runs afterwards.  If a preparation is
    requested during a start, the start cancels it.

    An event that is not legal is a defect of this package.  It raises
    IllegalEvent if ``strict`` is set, as in the tests.  In qubesd, the defect
    is logged and the phase becomes UNKNOWN, as after a restart.

    :cvar strict: whether an event that is not legal raises
    :ivar phase: the phase
    :ivar generation: number of the generation that start() returned, until
        stop() has finished; set only in UNKNOWN, IN_USE and ABANDONED
    :ivar session_size: size in bytes to which a clone was resized while its
        qube runs; None: it was not
    :ivar commits: number of commits by this object
    """

    strict: ClassVar[bool] = False

    def __init__(self, content: Content) -> None:
        """Start in the phase UNKNOWN."""
        self.phase = Phase.UNKNOWN
        self.generation: int | None = None
        self.session_size: int | None = None
        self.commits = 0
        self._content = content
        self._volume: Volume = content.volume

    def fire(self, event: Event) -> None:
        """Change the phase by the table.

        :raises IllegalEvent: if the event is not legal and ``strict`` is set
        """
        phase = TRANSITIONS[self.phase].get(event)
        if phase is None:
            defect = (
                f"{self._volume.vid}: event {event.name} in phase"
                f" {self.phase.name}"
            )
            if self.strict:
                raise IllegalEvent(defect)
            LOG.error(
                "defect in qubes-storage-zfs, report it to its maintainers: %s",
                defect,
            )
            phase, self.generation = Phase.UNKNOWN, None
        self.phase = phase
        if not phase.may_have_generation:
            self.generation = None

    def started(self, generation: int) -> None:
        """Note the generation that start() returns to the qube."""
        self.fire(Event.STARTED)
        self.generation = generation

    @property
    def is_prepared(self) -> bool:
        """Whether the volume is prepared for its next start."""
        return self.phase is Phase.PREPARED

    # --- use by a qube

    @property
    def in_use(self) -> bool:
        """Whether start() returned the volume, or qubesd recorded its use."""
        return self.generation is not None or self._volume.is_running()

    @property
    def is_starting(self) -> bool:
        """Whether start() has finished, and the qube is still starting.

        qubesd records only at the end of the start that the volume is in use.
        """
        starting = halting.is_starting(self._content.vm)
        return self.generation is not None and starting

    @property
    def is_stopping(self) -> bool:
        """Whether the domain has ended, and stop() has not finished.

        If stop() did not run in time, no stop is expected any more.  Then the
        record of qubesd is stale, as after a crash.
        """
        if self.phase is Phase.ABANDONED:
            return False
        return self._volume.is_running() and halting.has_ended(self._content.vm)

    def expect_no_stop(self) -> None:
        """Note that stop() did not run in time, if it was expected.

        No operation waits then until the next start() or stop().
        """
        if self.is_stopping:
            self.fire(Event.GIVE_UP)
            LOG.warning(
                "the volume %s in the pool %s was not stopped within %g s after"
                " its qube stopped; start the qube and shut it down again",
                self._volume.vid,
                self._volume.pool.name,
                halting.LIMIT,
            )

    def must_be_halted(self) -> None:
        """Check that no qube uses the volume.

        :raises Refused: if the qube runs or is starting
        """
        if self._volume.is_running() or self.is_starting:
            raise Refused(messages.RUNNING)

    def owns(self, state: VolumeState) -> bool:
        """Return whether this volume may commit or destroy the content on disk.

        The content may be of a removed qube that had the same name.  Either it
        is saved content where this volume is disposable, or create() found it.
        """
        if self.phase is Phase.FOREIGN:
            return False
        saves = bool(self._volume.save_on_stop)
        return state.current is None or saves or state.is_disposable
