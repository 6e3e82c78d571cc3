# SPDX-License-Identifier: BSD-2-Clause
"""Have a person asked for a passphrase: the service qubes.AskPassword.

It is called in dom0 or in the GUI domain, see domain_for().  The answer goes
from the service into a pipe that is not read here.  While it is awaited the
service's standard input stays open; its end closes the prompt.
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
from ..zfs.keys import NobodyToAsk, NotAsked
from ..zfs.keywords import Purpose
from .admin import Application, Qube

LOG = logging.getLogger("qubes.storage.zfs")

SERVICE = "qubes.AskPassword"
#: seconds until a prompt that nobody answers is closed
LIMIT = 120
#: seconds that the service has to close it by itself
GRACE = 5

CANCELLED = "the passphrase prompt was cancelled"
SILENT = "nobody answered the passphrase prompt in {domain} for {limit} seconds"
NOT_RUNNING = (
    "the passphrase is to be asked for in {domain}, which is not running;"
    " start it, or {instead}"
)
NOBODY = "nobody can be asked for the passphrase in {domain}; {instead}"
ASK_DOMAIN_MISSING = (
    "the qube {domain}, which ask_password_domain names, does not exist;"
    " {instead}"
)
ASK_DOMAIN_REPLACED = (
    "the qube {domain} is not the one that ask_password_domain named when the"
    " pool was added, so it is not asked; {instead}, or see encryption.md in"
    " the package's documentation"
)
#: what is done where nobody can be asked
UNLOCK_BY_HAND = "run 'sudo qvm-zfs unlock {pool}' in a terminal of dom0"

#: exit status of the service -> what it means
_STATUS_MESSAGES = {1: CANCELLED, 4: SILENT}


class Asker:
    """Asks for one pool's passphrase in one domain.

    :param find: returns dom0 or the qube to ask in, or None if there is none;
        raises NobodyToAsk if that qube must not be asked
    :param instead: what a person can do where nobody can be asked
    :param qube: the qube that needs the pool, shown in the prompt
    """

    def __init__(
        self,
        pool: str,
        find: Callable[[], Qube | None],
        instead: str,
        qube: str | None = None,
    ) -> None:
        self.pool = pool
        self.instead = instead.format(pool=pool)
        self._find = find
        #: one line: the pool, how many seconds to wait, the qube
        self._request = f"{pool} {{limit}}"
        if qube is not None and options.QUBE_NAME.match(qube):
            self._request += f" {qube}"

    def _message(self, template: str, domain: Qube | None) -> str:
        return template.format(
            domain=getattr(domain, "name", "dom0"),
            limit=LIMIT,
            instead=self.instead,
        )

    async def __call__(self, purpose: Purpose, answers: int) -> None:
        """Ask once.

        :param purpose: the argument of the service
        :param answers: file descriptor that the answer goes to
        :raises NotAsked: if there is no answer
        """
        domain = self._find()
        run_service = getattr(domain, "run_service", None)
        if domain is None or run_service is None:
            raise NobodyToAsk(self._message(NOBODY, domain))
        # in dom0 the service finds the person's session by itself
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
            raise NobodyToAsk(self._message(NOT_RUNNING, domain)) from exc
        except (qubes.exc.QubesException, OSError) as exc:
            LOG.warning("pool %s: %s", self.pool, exc)
            raise NobodyToAsk(self._message(NOBODY, domain)) from exc
        try:
            status = await self._wait_for_status(process)
        except TimeoutError as exc:
            raise NotAsked(self._message(SILENT, domain)) from exc
        finally:
            await _close(process)
        if status:
            if status in _STATUS_MESSAGES:
                raise NotAsked(self._message(_STATUS_MESSAGES[status], domain))
            LOG.warning("%s ended with status %d", SERVICE, status)
            raise NobodyToAsk(self._message(NOBODY, domain))

    async def _wait_for_status(
        self, process: asyncio.subprocess.Process
    ) -> int:
        stdin = cast(asyncio.StreamWriter, process.stdin)
        stdin.write(f"{self._request.format(limit=LIMIT)}\n".encode())
        return await asyncio.wait_for(process.wait(), LIMIT + GRACE)


async def _close(process: asyncio.subprocess.Process) -> None:
    """The prompt goes with its input; the process in any case."""
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
    """The application object of this qubesd, which pools do not know.

    :ivar app: qubes.Qubes, or None before the extension has noted it
    """

    def __init__(self) -> None:
        self.app: Application | None = None


def note_application(app: Application) -> None:
    """Note the application object; the extension calls this."""
    runtime.of(CurrentApplication).app = app


def _application(app: Application | None = None) -> Application | None:
    """Return *app*, or the one of this qubesd; None if there is none."""
    return app or runtime.of(CurrentApplication).app


@dataclass(frozen=True)
class AskDomain:
    """The qube that the option ask_password_domain names.

    :ivar uuid: that the qube had when the pool was added: a qube that is
        created later under the same name has another; None: not recorded
    """

    name: str
    uuid: str | None

    def matches(self, qube: Qube) -> bool:
        """Return whether *qube* is the one that was recorded."""
        return qube.name == self.name and str(qube.uuid) == self.uuid

    def find(self, app: Application, instead: str) -> Qube:
        """Return the qube.

        :raises NobodyToAsk: if it does not exist, or is another one
        """
        if self.name not in app.domains:
            template = ASK_DOMAIN_MISSING
        elif self.matches(qube := app.domains[self.name]):
            return qube
        else:
            template = ASK_DOMAIN_REPLACED
        raise NobodyToAsk(template.format(domain=self.name, instead=instead))


def find_domain(name: str, app: Application | None = None) -> Qube | None:
    """Return the domain of that name; None if there is none."""
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
    """Return where to ask; None if qubesd does not know its domains yet.

    In the qube that the pool's option names, else in ``default_guivm``, else
    in dom0, also if ``default_guivm`` is a RemoteVM.  A client that may change
    a qube's ``guivm`` must not redirect the passphrase, so that property
    decides only between the last two.

    :param qube: name of the qube that needs the pool
    :param app: that qube's application object
    :raises NobodyToAsk: if the ask_domain qube is not the one it was
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
    """Return what asks for the passphrase of *pool*; see domain_for()."""
    instead = instead.format(pool=pool)
    return Asker(
        pool, lambda: domain_for(ask_domain, qube, app, instead), instead, qube
    )
