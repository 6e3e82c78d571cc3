"""Have a person asked for a passphrase: the service qubes.AskPassword.

It is called in the GUI domain of the qube that is to start, or in dom0.  The
answer goes from the service into a pipe that is not read here.  While it is
awaited the service's standard input stays open; its end closes the prompt.
"""

import asyncio
import contextlib
import logging
import subprocess
from typing import Any, cast

import qubes.exc

from .zfs import keys

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
#: what is done where nobody can be asked
UNLOCK_BY_HAND = "run 'sudo qvm-zfs unlock {pool}' in a terminal of dom0"

#: exit status of the service -> what it means
_ENDS = {1: CANCELLED, 4: SILENT}


class NotAsked(Exception):
    """No answer, and why; a part of a sentence."""


class NobodyToAsk(NotAsked):
    """There is no domain, session or program to ask a person with."""


class Asker:
    """Asks for one pool's passphrase in one domain.

    :param domain: dom0, or the qube that has the screen; None: there is none
    :param instead: what a person can do where nobody can be asked
    """

    def __init__(self, pool: str, domain: Any, instead: str) -> None:
        self.pool = pool
        self.domain = domain
        self.instead = instead.format(pool=pool)

    def _why(self, template: str) -> str:
        return template.format(
            domain=getattr(self.domain, "name", "dom0"),
            limit=LIMIT,
            instead=self.instead,
        )

    async def __call__(self, purpose: str, answers: int) -> None:
        """Ask once.

        :param purpose: a word of keyholder.py
        :param answers: file descriptor that the answer goes to
        :raises NotAsked: if there is no answer
        """
        if self.domain is None:
            raise NobodyToAsk(self._why(NOBODY))
        # in dom0 the service finds the person's session by itself
        user = "root" if self.domain.klass == "AdminVM" else None
        try:
            process = await self.domain.run_service(
                f"{SERVICE}+{purpose}",
                user=user,
                stdin=subprocess.PIPE,
                stdout=answers,
                stderr=subprocess.DEVNULL,
            )
        except qubes.exc.QubesVMNotRunningError as exc:
            raise NobodyToAsk(self._why(NOT_RUNNING)) from exc
        except (qubes.exc.QubesException, OSError) as exc:
            LOG.warning("pool %s: %s", self.pool, exc)
            raise NobodyToAsk(self._why(NOBODY)) from exc
        try:
            status = await self._end_of(process)
        finally:
            await _close(process)
        if status:
            if status in _ENDS:
                raise NotAsked(self._why(_ENDS[status]))
            LOG.warning("%s ended with status %d", SERVICE, status)
            raise NobodyToAsk(self._why(NOBODY))

    async def _end_of(self, process: asyncio.subprocess.Process) -> int:
        stdin = cast(asyncio.StreamWriter, process.stdin)
        stdin.write(f"{self.pool} {LIMIT}\n".encode())
        try:
            return await asyncio.wait_for(process.wait(), LIMIT + GRACE)
        except TimeoutError as exc:
            raise NotAsked(self._why(SILENT)) from exc


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


#: the application object of this qubesd, which pools do not know; see
#: extension.py
_apps: list[Any] = []


def remember(app: Any) -> None:
    """*app* is the one that persons talk to."""
    _apps[:] = [app]


def domain_for(name: str | None, qube: str | None, app: Any = None) -> Any:
    """Where to ask: the domain of that name, or the GUI domain of *qube*,
    or of new qubes, or dom0; None if there is no such domain.

    :param name: from the option ask_password_domain
    :param app: the qube's application object
    """
    app = app or (_apps[0] if _apps else None)
    if app is None:
        return None
    if name:
        return app.domains[name] if name in app.domains else None
    if qube is not None and qube in app.domains:
        found = getattr(app.domains[qube], "guivm", None)
    else:
        found = getattr(app, "default_guivm", None)
    return found or app.domains["dom0"]


def prompt(
    pool: str,
    name: str | None,
    qube: str | None = None,
    app: Any = None,
    instead: str = UNLOCK_BY_HAND,
) -> keys.Prompt:
    """What asks for the passphrase of *pool*; see domain_for()."""
    return Asker(pool, domain_for(name, qube, app), instead)
