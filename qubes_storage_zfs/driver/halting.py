"""Waiting for the end of a stop.

qubesd stops the storage of a qube some time after the qube's domain has ended:
libvirt reports the end first, and then the volumes are committed.  Meanwhile
the qube is halted for a client, but its volumes are still in use.  In R4.3
"qvm-shutdown --wait" can return then (core-admin-client 4.3.29,
wait_for_domain_shutdown()), and what the user does next must not be refused.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import qubes.storage

from ..store import messages
from .errors import refusal

LOG = logging.getLogger("qubes.storage.zfs")

#: seconds that an operation waits for a stop
LIMIT = 30.0
#: seconds between two looks
INTERVAL = 0.1

#: qubesd's names of the power states after which it stops the storage
_ENDED = frozenset({"Halted", "Dying"})

Result = TypeVar("Result")


def has_ended(qube: Any) -> bool:
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


async def stopped(*volumes: Any) -> None:
    """Wait until a stop in progress of the volumes has ended.

    A running qube is not waited for, nor is a volume after one vain wait.  Call
    it without the lock of a volume, which its stop() needs.

    :param volumes: volumes of any driver; only ours are waited for
    """
    waiting = [each for each in volumes if hasattr(each, "is_stopping")]
    end = asyncio.get_running_loop().time() + LIMIT
    while any(each.is_stopping() for each in waiting):
        if asyncio.get_running_loop().time() >= end:
            for each in waiting:
                each.end_wait()
            return
        await asyncio.sleep(INTERVAL)


def after_stop(
    method: Callable[..., Awaitable[Result]],
) -> Callable[..., Awaitable[Result]]:
    """Decorate an operation of a volume to begin after a stop in progress.

    It goes outside of @locked, for the stop needs the lock.
    """

    @functools.wraps(method)
    async def later(self: Any, *args: Any, **kwargs: Any) -> Result:
        await stopped(self)
        return await method(self, *args, **kwargs)

    return later


class Used(qubes.storage.Volume):  # type: ignore[misc]
    """The part of ZfsVolume that knows whether a qube uses the volume.

    :ivar qube: name of the qube that has it; None if the volume is only known
        from the disk
    :ivar app: its application object; None likewise
    :ivar _given: number of the generation that start() gave, until stop()
    :ivar _stopped: whether stop() has ended since the last start()
    :ivar _awaited_in_vain: whether an operation has waited for a stop that did
        not come, since the last start() or stop()
    """

    qube: str | None = None
    app: Any = None
    _given: int | None = None
    _stopped = False
    _awaited_in_vain = False

    @property
    def _owner(self) -> Any:
        """The qube; None if there is none."""
        try:
            return self.app.domains[self.qube]
        except (AttributeError, KeyError, TypeError):
            return None

    def is_running(self) -> bool:
        """Return whether a qube uses the volume.

        qubesd notes it in a file, which it removes when all volumes of the
        qube have been stopped; this one is not in use any more when its own
        stop() has ended.
        """
        return not self._stopped and bool(super().is_running())

    def is_stopping(self) -> bool:
        """Return whether its qube has ended, and stop() has not yet.

        After a vain wait no stop is expected: qubesd's note is from before, as
        a crash leaves it.
        """
        if self._awaited_in_vain:
            return False
        return self.is_running() and has_ended(self._owner)

    def end_wait(self) -> None:
        """Expect no stop until the next start() or stop(), if one was awaited
        in vain."""
        if self.is_stopping():
            self._awaited_in_vain = True
            LOG.warning(
                "the volume %s in the pool %s was not stopped within %g s after"
                " its qube ended; start the qube and shut it down",
                self.vid,
                self.pool.name,
                LIMIT,
            )

    def _is_starting(self) -> bool:
        """Return whether start() has ended and other volumes of the qube are
        being started; qubesd does not note that it runs before."""
        lock = getattr(self._owner, "startup_lock", None)
        return self._given is not None and lock is not None and lock.locked()

    def _must_be_halted(self, what: str) -> None:
        """:raises StoragePoolException: if the qube runs or is starting"""
        if self.is_running() or self._is_starting():
            raise refusal(what, messages.RUNNING)
