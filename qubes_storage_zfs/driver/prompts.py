# SPDX-License-Identifier: BSD-2-Clause
"""Ask the user for a passphrase by the service qubes.AskPassword.

The service runs in dom0, in the GUI domain or in a chosen qube; see
domain_for().  It writes the answer into a pipe that this process does not read:
the keyholder reads it.  The prompt is open as long as the standard input of the
service, so closing the input closes the prompt.
"""

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import qubes.exc

from ..store import options
from ..zfs import keys, runtime
from ..zfs.keys import NoPrompt, PromptFailed
from ..zfs.keywords import Purpose
from .admin import Application, Qube

LOG = logging.getLogger("qubes.storage.zfs")

SERVICE = "qubes.AskPassword"
#: seconds after which a prompt without an answer is closed
LIMIT = 120
#: further seconds after which the service is killed
GRACE = 5

CANCELLED = "the passphrase prompt was cancelled; try again"
SILENT = (
    "the passphrase prompt in {domain} was not answered within {limit}"
    " seconds; try again"
)
NOT_RUNNING = (
    "the passphrase prompt is shown in {domain}, which is not running; start"
    " it, or {instead}"
)
NOT_SHOWN = "the passphrase prompt cannot be shown in {domain}; {instead}"
ASK_DOMAIN_MISSING = (
    "the qube {domain}, which ask_password_domain names, does not exist;"
    " {instead}"
)
ASK_DOMAIN_REPLACED = (
    "the qube {domain} is not the one that ask_password_domain named when the"
    " pool was added, so no prompt is shown there; {instead}, or see"
    " encryption.md in the package's documentation"
)
#: the advice if no prompt can be shown
UNLOCK_BY_HAND = "run 'sudo qvm-zfs unlock {pool}' in a dom0 terminal"

#: exit status of the service -> message
_STATUS_MESSAGES = {1: CANCELLED, 4: SILENT}


class Asker:
    """A prompt for the passphrase of one pool.

    prompt() creates it for one operation that loads a key.  The task that loads
    the key calls it, up to three times.
    """

    def __init__(
        self,
        pool: str,
        find: Callable[[], Qube | None],
        instead: str,
        qube: str | None = None,
    ) -> None:
        """Build the request of the service; show nothing yet.

        :param pool: name of the pool
        :param find: returns dom0 or the qube that shows the prompt, or None if
            there is none; raises NoPrompt if that qube must not show it
        :param instead: the advice if no prompt can be shown
        :param qube: name of the qube that needs the pool; the prompt shows it
        """
        self.pool = pool
        self.instead = instead.format(pool=pool)
        self._find = find
        #: one line: the pool, how many seconds to wait, the qube
        self._request = f"{pool} {{limit}}"
        if qube is not None and options.QUBE_NAME.match(qube):
            self._request += f" {qube}"

    def _message(self, template: str, domain: Qube | None) -> str:
        """Return a message about the prompt in *domain*."""
        return template.format(
            domain=getattr(domain, "name", "dom0"),
            limit=LIMIT,
            instead=self.instead,
        )

    async def __call__(self, purpose: Purpose, answers: int) -> None:
        """Show the prompt once, and wait until it is closed.

        :param purpose: the argument of the service
        :param answers: file descriptor to which the service writes the answer
        :raises PromptFailed: if the user did not answer
        :raises NoPrompt: if the prompt cannot be shown
        """
        domain = self._find()
        run_service = getattr(domain, "run_service", None)
        if domain is None or run_service is None:
            raise NoPrompt(self._message(NOT_SHOWN, domain))
        # in dom0 the service looks up the user's graphical session itself
        user = "root" if domain.klass == "AdminVM" else None
        try:
            process = await run_service(
                f"{SERVICE}+{purpose}",
                user=user,
                stdin=subprocess.PIPE,
                stdout=answers,
                stderr=subprocess.DEVNULL,
            )
        except qubes.exc.QubesVMNotRunningError as exc:
            raise NoPrompt(self._message(NOT_RUNNING, domain)) from exc
        except (qubes.exc.QubesException, OSError) as exc:
            LOG.warning("pool %s: cannot call %s: %s", self.pool, SERVICE, exc)
            raise NoPrompt(self._message(NOT_SHOWN, domain)) from exc
        try:
            status = await self._wait_for_status(process)
        except TimeoutError as exc:
            raise PromptFailed(self._message(SILENT, domain)) from exc
        finally:
            await _close(process)
        if status:
            if status in _STATUS_MESSAGES:
                raise PromptFailed(
                    self._message(_STATUS_MESSAGES[status], domain)
                )
            LOG.warning("%s exited with status %d", SERVICE, status)
            raise NoPrompt(self._message(NOT_SHOWN, domain))

    async def _wait_for_status(
        self, process: asyncio.subprocess.Process
    ) -> int:
        """Send the request, and return the exit status of the service.

        :raises TimeoutError: if the service runs longer than LIMIT + GRACE
        """
        stdin = cast(asyncio.StreamWriter, process.stdin)
        stdin.write(f"{self._request.format(limit=LIMIT)}\n".encode())
        return await asyncio.wait_for(process.wait(), LIMIT + GRACE)


async def _close(process: asyncio.subprocess.Process) -> None:
    """Close the prompt, and kill the service if it does not exit in 1 s."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 1)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class CurrentApplication:
    """The application object of this qubesd, which pools do not have.

    zfs/runtime.py creates it once in a process.  Only the thread of the event
    loop uses it.

    :ivar app: the application object; None until note_application()
    """

    def __init__(self) -> None:
        """Start without an application object."""
        self.app: Application | None = None


def note_application(app: Application) -> None:
    """Note the application object of this qubesd."""
    runtime.of(CurrentApplication).app = app


def _application(app: Application | None = None) -> Application | None:
    """Return *app*, or the application object of this qubesd, or None."""
    return app or runtime.of(CurrentApplication).app


@dataclass(frozen=True)
class AskDomain:
    """The qube that the option ask_password_domain names.

    A pool creates it from its options when it needs it.

    :ivar name: name of the qube
    :ivar uuid: UUID of the qube when the pool was added; None: not recorded.
        A qube that is created later under the same name has another UUID
    """

    name: str
    uuid: str | None

    def matches(self, qube: Qube) -> bool:
        """Return whether *qube* is the one that was recorded."""
        return qube.name == self.name and str(qube.uuid) == self.uuid

    def find(self, app: Application, instead: str) -> Qube:
        """Return the qube.

        :param instead: the advice if no prompt can be shown
        :raises NoPrompt: if there is no such qube, or its UUID differs
        """
        if self.name not in app.domains:
            template = ASK_DOMAIN_MISSING
        elif self.matches(qube := app.domains[self.name]):
            return qube
        else:
            template = ASK_DOMAIN_REPLACED
        raise NoPrompt(template.format(domain=self.name, instead=instead))


def find_domain(name: str, app: Application | None = None) -> Qube | None:
    """Return the domain of that name; None if there is none.

    :param app: None: the application object of this qubesd
    """
    app = _application(app)
    return app.domains[name] if app and name in app.domains else None


def is_remote(qube: Qube) -> bool:
    """Return whether *qube* is a RemoteVM, in which qubesd runs no service."""
    return getattr(qube, "klass", None) == "RemoteVM"


def domain_for(
    ask_domain: AskDomain | None,
    qube: str | None,
    app: Application | None = None,
    instead: str = UNLOCK_BY_HAND,
) -> Qube | None:
    """Return the domain that shows the prompt.

    It is the first of these:

    1. the qube that the pool's option ask_password_domain names
    2. dom0, if the ``guivm`` of the qube that needs the pool is dom0
    3. ``default_guivm``, unless it is a RemoteVM
    4. dom0

    A client that may set the ``guivm`` of a qube must not choose where the user
    types the passphrase.  So that property can only choose dom0.

    :param ask_domain: the qube that the option names; None: not set
    :param qube: name of the qube that needs the pool
    :param app: application object of that qube; None: that of this qubesd
    :param instead: the advice if no prompt can be shown
    :return: None if qubesd has not loaded its domains yet
    :raises NoPrompt: if there is no qube *ask_domain*, or its UUID differs
    """
    app = _application(app)
    if app is None:
        return None
    if ask_domain is not None:
        return ask_domain.find(app, instead)
    dom0 = app.domains["dom0"]
    if qube is not None and qube in app.domains:
        if getattr(app.domains[qube], "guivm", None) == dom0:
            return dom0
    default = getattr(app, "default_guivm", None)
    return dom0 if default is None or is_remote(default) else default


def prompt(
    pool: str,
    ask_domain: AskDomain | None,
    qube: str | None = None,
    app: Application | None = None,
    instead: str = UNLOCK_BY_HAND,
) -> keys.Prompt:
    """Return a prompt for the passphrase of *pool*.

    The parameters are those of domain_for().
    """
    instead = instead.format(pool=pool)
    return Asker(
        pool, lambda: domain_for(ask_domain, qube, app, instead), instead, qube
    )
