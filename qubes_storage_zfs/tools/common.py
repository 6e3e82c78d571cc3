# SPDX-License-Identifier: BSD-2-Clause
"""Code that the subcommands share: configured pools, terminal prompts."""

import asyncio
import contextlib
import importlib
import termios
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..store import messages, naming, policy, rundir
from ..zfs import keys
from ..zfs.keywords import LONGEST, SHORTEST, Purpose
from .output import ask, warn

#: the application object of qubesadmin, which has no types
App = Any

ENCRYPTED = "zfs_encrypted"
DRIVERS = ("zfs_zvol", ENCRYPTED)
#: the file that qubesd reads its pools from
QUBES_XML = Path("/var/lib/qubes/qubes.xml")
#: seconds after which the tool prints which step it waits for
SILENCE = 2.0

_BOUNDS = f"{SHORTEST} to {LONGEST} bytes"
#: purpose of a prompt -> its text
TEXTS = {
    Purpose.UNLOCK: "Passphrase of the pool {pool}: ",
    Purpose.UNLOCK_AGAIN: (
        "The passphrase was wrong. Passphrase of the pool {pool}: "
    ),
    Purpose.NEW: f"New passphrase of the pool {{pool}} ({_BOUNDS}): ",
    Purpose.NEW_AGAIN: "Repeat the new passphrase: ",
    Purpose.NEW_DIFFERS: (
        "The passphrases did not match. New passphrase of the pool {pool}: "
    ),
    Purpose.NEW_SHORT: (
        f"The passphrase was not {_BOUNDS} long. New passphrase of the pool"
        " {pool}: "
    ),
}


class Failed(messages.Refused):
    """A failure of a subcommand, of which the user sees only the message."""


@dataclass(frozen=True)
class Pool:
    """A pool of this driver, as qubesd or a disk describes it.

    :ivar dataset: its container
    :ivar guid: GUID of its zpool from qubes.xml; None if it is not recorded
    :ivar is_configured: whether qubesd has it; else only a mark on a disk
        names it
    """

    name: str
    driver: str
    dataset: str
    guid: str | None = None
    is_configured: bool = True

    @property
    def zpool(self) -> str:
        """The zpool that the pool is in."""
        return self.dataset.partition("/")[0]

    @property
    def qubes_root(self) -> str:
        """The qubes root: the dataset below which the qubes' datasets are."""
        return self.dataset if self.is_encrypted else f"{self.dataset}/vm"

    @property
    def is_encrypted(self) -> bool:
        """Whether it is an encrypted pool."""
        return self.driver == ENCRYPTED

    @property
    def place(self) -> policy.Place:
        """The pool as store/policy.py checks it."""
        return policy.Place(
            self.name,
            self.dataset,
            self.qubes_root,
            self.is_encrypted,
            self.guid,
        )


@contextlib.asynccontextmanager
async def slow(text: str) -> AsyncIterator[None]:
    """Print *text* if the context takes longer than SILENCE."""

    async def print_later() -> None:
        await asyncio.sleep(SILENCE)
        warn(f"{text} ...")

    task = asyncio.create_task(print_later())
    try:
        yield
    finally:
        task.cancel()


def qubesd() -> App:
    """Return qubesadmin's application object; None if qubesd does not answer."""
    try:
        app = importlib.import_module("qubesadmin").Qubes()
        list(app.pools)
    except Exception:  # no failure of qubesd or qubesadmin stops the tool
        return None
    return app


def configured(app: App) -> list[Pool]:
    """Return the pools of qubesd; from qubes.xml if it does not run.

    :param app: the result of qubesd()
    :raises Failed: if qubes.xml exists and cannot be read
    """
    configs: list[Mapping[str, str]] = []
    if app is not None:
        configs = [pool.config for pool in app.pools.values()]
    else:
        try:
            tree = ElementTree.parse(QUBES_XML)
        except FileNotFoundError:
            return []
        except (OSError, ElementTree.ParseError) as exc:
            raise Failed(
                messages.NO_QUBES_XML, path=QUBES_XML, reason=exc
            ) from exc
        configs = [node.attrib for node in tree.iterfind("./pools/pool")]
    return [
        _pool(config) for config in configs if config.get("driver") in DRIVERS
    ]


def _pool(config: Mapping[str, str]) -> Pool:
    """Return the pool that a configuration of qubesd describes."""
    name, driver = config["name"], config["driver"]
    if driver == ENCRYPTED:
        dataset = f"{config.get('zpool_name', name)}/encryption/{name}"
    else:
        dataset = config.get("container", name)
    return Pool(name, driver, dataset, config.get(naming.ZPOOL_GUID))


def seconds_until_unload(pool: Pool) -> float | None:
    """Return the seconds until qubesd unloads the key; None if not known."""
    return rundir.seconds_left(pool.name, pool.dataset)


# --- prompts


@contextlib.contextmanager
def terminal(pool: str) -> Iterator[keys.Prompt]:
    """Yield a function that shows the prompts; the keyholder reads the input.

    Afterwards the terminal has its earlier modes, even if the keyholder was
    killed while the echo was off.

    :param pool: name of the pool, for the prompts
    """
    before = _modes()

    async def prompt(purpose: Purpose, _: int) -> None:
        if before is not None:
            ask(TEXTS[purpose].format(pool=pool))

    try:
        yield prompt
    finally:
        if before is not None and _modes() not in (None, before):
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSAFLUSH, before)


def _modes() -> list[int | list[bytes]] | None:
    """Return the modes of the terminal; None if stdin is not a terminal."""
    try:
        return termios.tcgetattr(0)
    except termios.error:
        return None
