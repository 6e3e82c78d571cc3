"""What the verbs share: which pools there are, and who is asked."""

import asyncio
import contextlib
import importlib
import termios
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..store import naming, policy, rundir
from ..zfs import keys
from ..zfs.keywords import LONGEST, SHORTEST, Purpose
from .output import ask, warn

ENCRYPTED = "zfs_encrypted"
DRIVERS = ("zfs_zvol", ENCRYPTED)
#: what qubesd has its pools from
QUBES_XML = Path("/var/lib/qubes/qubes.xml")
#: seconds without a word
SILENCE = 2.0

_BOUNDS = f"{SHORTEST} to {LONGEST} bytes"
#: the purpose of a prompt -> its text
TEXTS = {
    Purpose.UNLOCK: "Passphrase of the pool {pool}: ",
    Purpose.UNLOCK_AGAIN: "That is not it. Passphrase of the pool {pool}: ",
    Purpose.NEW: f"New passphrase of the pool {{pool}} ({_BOUNDS}): ",
    Purpose.NEW_AGAIN: "The same once more: ",
    Purpose.NEW_DIFFERS: (
        "The two differ. New passphrase of the pool {pool}: "
    ),
    Purpose.NEW_SHORT: (
        f"It must have {_BOUNDS}. New passphrase of {{pool}}: "
    ),
}


class Failed(Exception):
    """The text is what a person is told."""


@dataclass(frozen=True)
class Pool:
    """A pool of ours, from what ZFS or qubesd says.

    :ivar dataset: its container
    :ivar guid: of its zpool, when it was added; None if that was not noted
    :ivar is_configured: whether qubesd has it; else only a disk claims it
    """

    name: str
    driver: str
    dataset: str
    guid: str | None = None
    is_configured: bool = True

    @property
    def zpool(self) -> str:
        return self.dataset.partition("/")[0]

    @property
    def home(self) -> str:
        """The dataset below which the qubes' datasets are."""
        return (
            self.dataset if self.driver == ENCRYPTED else self.dataset + "/vm"
        )

    @property
    def place(self) -> policy.Place:
        return policy.Place(
            self.name,
            self.dataset,
            self.home,
            self.driver == ENCRYPTED,
            self.guid,
        )


@contextlib.asynccontextmanager
async def slow(what: str) -> AsyncIterator[None]:
    """Say *what* is being done if it takes long."""

    async def say() -> None:
        await asyncio.sleep(SILENCE)
        warn(f"{what} ...")

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()


def qubesd() -> Any:
    """qubesadmin's application object; None where there is none."""
    try:
        app = importlib.import_module("qubesadmin").Qubes()
        list(app.pools)
    except Exception:  # whatever it is, the tool works without
        return None
    return app


def configured(app: Any) -> list[Pool]:
    """Return the pools that qubesd has, or will have when it runs.

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
                f"{QUBES_XML}, which says which pools there are, cannot be"
                f" read: {exc}; start qubesd, or restore the file"
            ) from exc
        configs = [node.attrib for node in tree.iterfind("./pools/pool")]
    return [_pool(each) for each in configs if each.get("driver") in DRIVERS]


def _pool(config: Mapping[str, str]) -> Pool:
    name, driver = config["name"], config["driver"]
    if driver == ENCRYPTED:
        dataset = f"{config.get('zpool_name', name)}/encryption/{name}"
    else:
        dataset = config.get("container", name)
    return Pool(name, driver, dataset, config.get(naming.ZPOOL_GUID))


def due(pool: Pool) -> float | None:
    """Seconds until qubesd forgets the key; None if nobody knows."""
    return rundir.seconds_left(pool.name, pool.dataset)


# --- asking


@contextlib.contextmanager
def terminal(pool: str) -> Iterator[keys.Prompt]:
    """What shows the prompts for *pool*; the keyholder reads the answers.

    Afterwards the terminal is as it was, also if the keyholder was killed
    while it did not show what is typed.
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


def _modes() -> list[Any] | None:
    """Of the terminal that is the standard input; None if it is none."""
    try:
        return termios.tcgetattr(0)
    except termios.error:
        return None
