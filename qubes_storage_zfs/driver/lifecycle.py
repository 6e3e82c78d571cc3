# SPDX-License-Identifier: BSD-2-Clause
"""What this process knows of a volume's use: its phase, and who may change it."""

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
    """An event that the phase of a volume does not allow: a defect."""


class Lifecycle:
    """The lifecycle of one volume in this process.

    The volume creates it, and has it as long as it exists.  A qubesd that has
    restarted has new objects, whose phase is UNKNOWN: each decision is made from
    the disk and from qubesd's note of running volumes then.

    Only fire() changes the phase, as this table says.  ``=`` marks an event that
    leaves the phase as it is, a dot one that is not legal.

    ============= ======= ======== ========== ========= ========
    event         UNKNOWN HALTED   TO_PREPARE PREPARING PREPARED
    ============= ======= ======== ========== ========= ========
    CREATED       HALTED  =        .          .         .
    FOUND_FOREIGN FOREIGN FOREIGN  .          .         .
    START         =       =        HALTED     .         HALTED
    STARTED       IN_USE  IN_USE   IN_USE     .         .
    STOP          =       =        HALTED     .         HALTED
    STOPPED       HALTED  =        =          .         .
    GIVE_UP       ABANDONED .      .          .         .
    PREPARE       TO_PREPARE TO_PREPARE = TO_PREPARE TO_PREPARE
    PREPARING     .       .        PREPARING  .         .
    PREPARED      .       PREPARED =          PREPARED  .
    DISCARDED     .       .        .          HALTED    HALTED
    REMOVE        REMOVED REMOVED  REMOVED    .         REMOVED
    ============= ======= ======== ========== ========= ========

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

    Operations hold the volume's lock, so their events come one after the other.
    Only PREPARE and GIVE_UP come at any time: a preparation that is requested
    while another one runs follows it, and one that is requested during a start
    is dropped by that start.

    An event that is not legal is a defect of this package.  It raises
    IllegalEvent if ``strict`` is set, as in the tests.  Else qubesd must go on:
    the defect is logged, and the phase becomes UNKNOWN, as after a restart.

    :cvar strict: whether an event that is not legal raises
    :ivar phase: the phase
    :ivar generation: number of the generation that start() returned, until
        stop() has ended; only in UNKNOWN, IN_USE and ABANDONED
    :ivar session_size: bytes; what a clone was resized to while its qube runs
    :ivar commits: how often this object has changed the committed state
    """

    strict: ClassVar[bool] = False

    def __init__(self, content: Content) -> None:
        self.phase = Phase.UNKNOWN
        self.generation: int | None = None
        self.session_size: int | None = None
        self.commits = 0
        self._content = content
        self._volume: Volume = content.volume

    def fire(self, event: Event) -> None:
        """Change the phase.

        :raises IllegalEvent: if the event is not legal and ``strict`` is set
        """
        phase = TRANSITIONS[self.phase].get(event)
        if phase is None:
            defect = f"{self._volume.vid}: {event.name} while {self.phase.name}"
            if self.strict:
                raise IllegalEvent(defect)
            LOG.error("defect, please report it: %s", defect)
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

    # --- whether a qube uses it

    @property
    def in_use(self) -> bool:
        """Whether start() has returned it, or qubesd noted that it runs."""
        return self.generation is not None or self._volume.is_running()

    @property
    def is_starting(self) -> bool:
        """Whether start() has ended and other volumes of the qube are being
        started; qubesd notes only then that the volume runs."""
        starting = halting.is_starting(self._content.vm)
        return self.generation is not None and starting

    @property
    def is_stopping(self) -> bool:
        """Whether its qube has ended, and stop() has not yet.

        After a vain wait no stop is expected: qubesd's note is from before, as
        a crash leaves it.
        """
        if self.phase is Phase.ABANDONED:
            return False
        return self._volume.is_running() and halting.has_ended(self._content.vm)

    def expect_no_stop(self) -> None:
        """Expect no stop until the next start() or stop(), if one was awaited
        in vain."""
        if self.is_stopping:
            self.fire(Event.GIVE_UP)
            LOG.warning(
                "the volume %s in the pool %s was not stopped within %g s after"
                " its qube ended; start the qube and shut it down",
                self._volume.vid,
                self._volume.pool.name,
                halting.LIMIT,
            )

    def must_be_halted(self) -> None:
        """:raises Refused: if the qube runs or is starting"""
        if self._volume.is_running() or self.is_starting:
            raise Refused(messages.RUNNING)

    def owns(self, state: VolumeState) -> bool:
        """Whether the content on disk is this volume's, to commit or destroy.

        A removed qube may have left a volume that saves under the name of one
        that does not, or one that create() found in its place.
        """
        if self.phase is Phase.FOREIGN:
            return False
        saves = bool(self._volume.save_on_stop)
        return state.current is None or saves or state.scratch
