# SPDX-License-Identifier: BSD-2-Clause
"""The phases of a volume in this process, and the transitions between them.

Data only: lifecycle.py applies it, a test runs through every phase and event.
"""

import enum
from collections.abc import Mapping


class Phase(enum.Enum):
    """What this process knows of a volume's use and of its preparation."""

    #: nothing, as after a restart of qubesd: the disk and qubesd's note decide
    UNKNOWN = "unknown"
    #: no qube uses it
    HALTED = "halted"
    #: no qube uses it, and its next start is to be prepared
    TO_PREPARE = "to prepare"
    #: its next start is being prepared
    PREPARING = "preparing"
    #: its content is reset, ready for the next start
    PREPARED = "prepared"
    #: start() returned it to a qube
    IN_USE = "in use"
    #: its qube has ended, and an operation waited in vain for stop()
    ABANDONED = "abandoned"
    #: create() found a volume of another qube in its place
    FOREIGN = "foreign"
    #: remove() has destroyed it
    REMOVED = "removed"

    @property
    def is_halted(self) -> bool:
        """Whether no qube uses the volume, whatever qubesd noted."""
        return self in _HALTED

    @property
    def may_have_generation(self) -> bool:
        """Whether start() may have returned a generation."""
        return self in _WITH_GENERATION


class Event(enum.Enum):
    """What happens to a volume, and may change its phase."""

    #: create() has created it, or has nothing to create
    CREATED = "created"
    #: create() found another volume
    FOUND_FOREIGN = "found foreign"
    #: start() begins
    START = "start"
    #: start() has chosen the generation for the qube
    STARTED = "started"
    #: stop() begins
    STOP = "stop"
    #: stop() has committed or discarded the session
    STOPPED = "stopped"
    #: an operation has waited in vain for stop()
    GIVE_UP = "give up"
    #: the next start is to be prepared
    PREPARE = "prepare"
    #: the preparation begins
    PREPARING = "preparing"
    #: the volume is reset for the next start
    PREPARED = "prepared"
    #: what was prepared is destroyed, or could not be prepared
    DISCARDED = "discarded"
    #: remove() destroys it
    REMOVE = "remove"


_HALTED = frozenset(
    (
        Phase.HALTED,
        Phase.TO_PREPARE,
        Phase.PREPARING,
        Phase.PREPARED,
        Phase.FOREIGN,
        Phase.REMOVED,
    )
)
_WITH_GENERATION = frozenset((Phase.UNKNOWN, Phase.IN_USE, Phase.ABANDONED))

#: phase -> event -> next phase; an event that is absent is not legal
TRANSITIONS: Mapping[Phase, Mapping[Event, Phase]] = {
    Phase.UNKNOWN: {
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.START: Phase.UNKNOWN,
        Event.STARTED: Phase.IN_USE,
        Event.STOP: Phase.UNKNOWN,
        Event.STOPPED: Phase.HALTED,
        Event.GIVE_UP: Phase.ABANDONED,
        Event.PREPARE: Phase.TO_PREPARE,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.HALTED: {
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.START: Phase.HALTED,
        Event.STARTED: Phase.IN_USE,
        Event.STOP: Phase.HALTED,
        Event.STOPPED: Phase.HALTED,
        Event.PREPARE: Phase.TO_PREPARE,
        Event.PREPARED: Phase.PREPARED,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.TO_PREPARE: {
        Event.START: Phase.HALTED,
        # start() and stop() may be running when the source changes
        Event.STARTED: Phase.IN_USE,
        Event.STOP: Phase.HALTED,
        Event.STOPPED: Phase.TO_PREPARE,
        Event.PREPARE: Phase.TO_PREPARE,
        Event.PREPARING: Phase.PREPARING,
        # the preparation was requested again while it ran
        Event.PREPARED: Phase.TO_PREPARE,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.PREPARING: {
        Event.PREPARE: Phase.TO_PREPARE,
        Event.PREPARED: Phase.PREPARED,
        Event.DISCARDED: Phase.HALTED,
    },
    Phase.PREPARED: {
        Event.START: Phase.HALTED,
        Event.STOP: Phase.HALTED,
        Event.PREPARE: Phase.TO_PREPARE,
        Event.DISCARDED: Phase.HALTED,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.IN_USE: {
        # it is the qube's own volume that is in its place
        Event.FOUND_FOREIGN: Phase.IN_USE,
        Event.START: Phase.IN_USE,
        Event.STARTED: Phase.IN_USE,
        Event.STOP: Phase.IN_USE,
        Event.STOPPED: Phase.HALTED,
        Event.GIVE_UP: Phase.ABANDONED,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.ABANDONED: {
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.START: Phase.ABANDONED,
        Event.STARTED: Phase.IN_USE,
        Event.STOP: Phase.UNKNOWN,
        # stop() was running while the operation waited
        Event.STOPPED: Phase.HALTED,
        Event.PREPARE: Phase.TO_PREPARE,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.FOREIGN: {
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.STOP: Phase.FOREIGN,
        Event.STOPPED: Phase.FOREIGN,
        Event.REMOVE: Phase.REMOVED,
    },
    Phase.REMOVED: {
        # qubesd uses the object again, as after a removal that failed
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.START: Phase.UNKNOWN,
        Event.STOP: Phase.UNKNOWN,
        Event.REMOVE: Phase.REMOVED,
    },
}
