# SPDX-License-Identifier: BSD-2-Clause
"""The phases of a volume in this process, and the transitions between them.

This module has only data.  lifecycle.py applies it, and a test covers each pair
of a phase and an event.
"""

import enum
from collections.abc import Mapping


class Phase(enum.Enum):
    """The use and the preparation of a volume, as this process knows them."""

    #: unknown, as after a restart of qubesd: the disk and qubesd's record
    #: decide
    UNKNOWN = "unknown"
    #: no qube uses the volume
    HALTED = "halted"
    #: no qube uses the volume, and its next start is to be prepared
    TO_PREPARE = "to prepare"
    #: the next start is being prepared
    PREPARING = "preparing"
    #: the content is reset for the next start
    PREPARED = "prepared"
    #: start() returned the volume to a qube
    IN_USE = "in use"
    #: the domain has ended, and stop() did not run in time
    ABANDONED = "abandoned"
    #: create() found a volume of another qube under this name
    FOREIGN = "foreign"
    #: remove() has destroyed the volume
    REMOVED = "removed"

    @property
    def is_halted(self) -> bool:
        """Whether no qube uses the volume, even if qubesd recorded a use."""
        return self in _HALTED

    @property
    def may_have_generation(self) -> bool:
        """Whether start() may have returned a generation."""
        return self in _WITH_GENERATION


class Event(enum.Enum):
    """An event in the life of a volume, which can change its phase."""

    #: create() has finished
    CREATED = "created"
    #: create() found a volume of another qube
    FOUND_FOREIGN = "found foreign"
    #: start() starts
    START = "start"
    #: start() has chosen the generation for the qube
    STARTED = "started"
    #: stop() starts
    STOP = "stop"
    #: stop() has committed or discarded the session
    STOPPED = "stopped"
    #: stop() did not run in time
    GIVE_UP = "give up"
    #: the next start is to be prepared
    PREPARE = "prepare"
    #: the preparation starts
    PREPARING = "preparing"
    #: the volume is reset for the next start
    PREPARED = "prepared"
    #: prepared content is destroyed, or the preparation failed
    DISCARDED = "discarded"
    #: remove() destroys the volume
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
        # the volume under this name is the qube's own
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
        # stop() ran while the operation waited
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
        # qubesd can use the object again after a removal that failed
        Event.CREATED: Phase.HALTED,
        Event.FOUND_FOREIGN: Phase.FOREIGN,
        Event.START: Phase.UNKNOWN,
        Event.STOP: Phase.UNKNOWN,
        Event.REMOVE: Phase.REMOVED,
    },
}
