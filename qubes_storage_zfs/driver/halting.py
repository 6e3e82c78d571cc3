# SPDX-License-Identifier: BSD-2-Clause
"""Wait until qubesd has stopped the volumes of a qube.

qubesd stops the storage of a qube some time after the domain has ended.  First
libvirt reports the end, then qubesd calls stop() of the volumes.  In between, a
client sees a halted qube, but its volumes are still in use.

In R4.3 ``qvm-shutdown --wait`` can return in this interval (core-admin-client
4.3.29, ``wait_for_domain_shutdown()``).  An operation that the user starts next
must not be refused, so it waits here.

This module asks qubesd whether a domain has ended.  The lifecycle of a volume
records whether its stop() has run.
"""

import asyncio
from typing import Protocol, cast

from .admin import Qube

#: seconds that an operation waits for a stop at most
LIMIT = 30.0
#: seconds between two checks
INTERVAL = 0.1

#: qubesd's names of the power states after which it stops the storage
_ENDED = frozenset({"Halted", "Dying"})


class Stoppable(Protocol):
    """A volume of this driver, as this module sees it."""

    def is_stopping(self) -> bool:
        """Return whether its domain has ended and stop() has not finished."""

    def expect_no_stop(self) -> None:
        """Note that stop() did not run in time, so that no operation waits."""


def has_ended(qube: Qube | None) -> bool:
    """Return whether the domain of *qube* has ended; False if unknown.

    False also in the copy of the qubes that qubesd loads for a backup, where
    all qubes are halted and no stop follows.
    """
    if qube is None:
        return False
    try:
        if qube.app.vmm.offline_mode:
            return False
        return qube.get_power_state() in _ENDED
    except Exception:  # pylint: disable=broad-except
        # libvirt.libvirtError, which cannot be imported in the unit tests
        return False


def is_starting(qube: Qube | None) -> bool:
    """Return whether qubesd is starting *qube*; False if unknown."""
    lock = getattr(qube, "startup_lock", None)
    return lock is not None and bool(lock.locked())


async def wait_for_stop(*volumes: object) -> None:
    """Wait until stop() of each volume whose domain has ended has finished.

    Do not wait for a volume whose qube runs.  Do not wait a second time for a
    volume whose stop() did not run within LIMIT.  The caller must not have the
    lock of a volume, because its stop() needs the lock.

    :param volumes: volumes of any driver; those of other drivers are ignored
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
