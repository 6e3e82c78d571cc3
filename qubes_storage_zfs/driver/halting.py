# SPDX-License-Identifier: BSD-2-Clause
"""Waiting for the end of a stop.

qubesd stops the storage of a qube some time after the qube's domain has ended:
libvirt reports the end first, and then the volumes are committed.  Meanwhile
the qube is halted for a client, but its volumes are still in use.  In R4.3
"qvm-shutdown --wait" can return then (core-admin-client 4.3.29,
wait_for_domain_shutdown()), and what the user does next must not be refused.

This module asks qubesd whether a domain has ended.  The lifecycle of a volume
knows whether its stop() is still to come.
"""

import asyncio
from typing import Protocol, cast

from .admin import Qube

#: seconds that an operation waits for a stop
LIMIT = 30.0
#: seconds between two checks
INTERVAL = 0.1

#: qubesd's names of the power states after which it stops the storage
_ENDED = frozenset({"Halted", "Dying"})


class Stoppable(Protocol):
    """A volume of this driver, whose stop can be awaited."""

    def is_stopping(self) -> bool:
        """Return whether its qube has ended and stop() has not."""

    def expect_no_stop(self) -> None:
        """Expect no stop any more, if one was awaited in vain."""


def has_ended(qube: Qube | None) -> bool:
    """Return whether the domain of *qube* has ended; False if not known.

    The qubes of an offline copy of the application, which qubesd makes for a
    backup, are always halted.
    """
    if qube is None:
        return False
    try:
        if qube.app.vmm.offline_mode:
            return False
        return qube.get_power_state() in _ENDED
    except Exception:  # pylint: disable=broad-except
        # libvirtError, which not every Python here can import
        return False


def is_starting(qube: Qube | None) -> bool:
    """Return whether qubesd is starting *qube*; False if not known."""
    lock = getattr(qube, "startup_lock", None)
    return lock is not None and bool(lock.locked())


async def wait_for_stop(*volumes: object) -> None:
    """Wait until a stop in progress of the volumes has ended.

    A running qube is not waited for, nor is a volume after one vain wait.  Call
    it without the lock of a volume, which its stop() needs.

    :param volumes: volumes of any driver; only ours are waited for
    """
    waiting: list[Stoppable] = [
        cast(Stoppable, volume)
        for volume in volumes
        if hasattr(volume, "is_stopping")
    ]
    deadline = asyncio.get_running_loop().time() + LIMIT
    while any(volume.is_stopping() for volume in waiting):
        if asyncio.get_running_loop().time() >= deadline:
            for volume in waiting:
                volume.expect_no_stop()
            return
        await asyncio.sleep(INTERVAL)
