"""What the verbs share: which pools there are, and who is asked."""

import asyncio
import contextlib
import importlib
import json
import os
import sys
import termios
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .. import layout, policy
from ..backoff import now
from ..key import RUN_DIR
from ..zfs import keys, native
from ..zfs.keyholder import LONGEST
from ..zfs.native import wipe

ENCRYPTED = "zfs_encrypted"
DRIVERS = ("zfs_zvol", ENCRYPTED)
#: what qubesd has its pools from
QUBES_XML = Path("/var/lib/qubes/qubes.xml")
#: seconds without a word
SILENCE = 2.0

#: what a prompt is for -> its text
TEXTS = {
    "unlock": "Passphrase of the pool {pool}: ",
    "unlock-again": "That is not it. Passphrase of the pool {pool}: ",
    "new": "New passphrase of the pool {pool} (8 to 512 bytes): ",
    "new-again": "The same once more: ",
    "new-differs": "The two differ. New passphrase of the pool {pool}: ",
    "new-short": "It must have 8 to 512 bytes. New passphrase of {pool}: ",
}


class Failed(Exception):
    """The text is what a person is told."""


@dataclass(frozen=True)
class Pool:
    """A pool of ours, from what ZFS or qubesd says.

    :ivar dataset: its container
    :ivar guid: of its zpool, when it was added; None if that was not noted
    """

    name: str
    driver: str
    dataset: str
    guid: str | None = None

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
            self.name, self.dataset, self.home, self.driver == ENCRYPTED
        )


@contextlib.asynccontextmanager
async def slow(what: str) -> AsyncIterator[None]:
    """Say *what* is being done if it takes long."""

    async def say() -> None:
        await asyncio.sleep(SILENCE)
        print(f"{what} ...", file=sys.stderr, flush=True)

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


async def on_disk() -> list[Pool]:
    """The pools whose containers are there.

    :raises CommandFailed: if zfs(8) refuses
    """
    _, text = await native.run(
        "zfs",
        *("get", "-Hp", "-t", "filesystem", "-s", "local,received"),
        *("-o", "name,value", layout.OWNER),
    )
    found = []
    for line in filter(None, text.split("\n")):
        dataset, name = line.split("\t")
        ours = dataset.endswith(f"/encryption/{name}")
        safe = ours and (await keys.state(dataset)).root == dataset
        driver = ENCRYPTED if safe else DRIVERS[0]
        found.append(Pool(name, driver, dataset))
    return found


def configured(app: Any) -> list[Pool]:
    """The pools that qubesd has, or will have when it runs."""
    configs: list[Mapping[str, str]] = []
    if app is not None:
        configs = [pool.config for pool in app.pools.values()]
    else:
        with contextlib.suppress(OSError, ElementTree.ParseError):
            tree = ElementTree.parse(QUBES_XML)
            configs = [node.attrib for node in tree.iterfind("./pools/pool")]
    return [_pool(each) for each in configs if each.get("driver") in DRIVERS]


def _pool(config: Mapping[str, str]) -> Pool:
    name, driver = config["name"], config["driver"]
    if driver == ENCRYPTED:
        dataset = f"{config.get('zpool_name', name)}/encryption/{name}"
    else:
        dataset = config.get("container", name)
    return Pool(name, driver, dataset, config.get(layout.ZPOOL_GUID))


async def all_pools(app: Any) -> list[Pool]:
    """Those on disk and those that only qubesd knows, by name."""
    found = {pool.name: pool for pool in await on_disk()}
    for pool in configured(app):
        there = found.setdefault(pool.name, pool)
        found[pool.name] = replace(there, guid=pool.guid)
    return [found[name] for name in sorted(found)]


async def encrypted_pool(name: str) -> Pool:
    """:raises Failed: if there is no such pool with a key"""
    for pool in await all_pools(qubesd()):
        if pool.name == name:
            if pool.driver != ENCRYPTED:
                raise Failed(f"the pool {name} is not encrypted")
            if not (await keys.state(pool.dataset)).exists:
                raise Failed(
                    f"{pool.dataset} is not there; is its zpool imported?"
                )
            return pool
    raise Failed(f"there is no ZFS pool {name}; 'qvm-zfs status' lists them")


def due(pool: Pool) -> float | None:
    """Seconds until qubesd forgets the key; None if nobody knows."""
    try:
        told = json.loads((RUN_DIR / f"{pool.name}.json").read_text())
        if told["root"] != pool.dataset or told["due"] is None:
            return None
        return max(0.0, float(told["due"]) - now())
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- asking


class Terminal:
    """Asks at the terminal, or takes lines of the standard input."""

    def __init__(self, pool: str) -> None:
        self.pool = pool

    async def __call__(self, purpose: str, answers: int) -> None:
        """:raises Failed: if nothing comes"""
        await asyncio.to_thread(self._ask, purpose, answers)

    def _ask(self, purpose: str, answers: int) -> None:
        with _unseen():
            if os.isatty(0):
                print(
                    TEXTS[purpose].format(pool=self.pool),
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            line = _line()
            if os.isatty(0):
                print(file=sys.stderr)
        try:
            if not line.endswith(b"\n"):
                raise Failed("no passphrase was given")
            os.write(answers, line)
        finally:
            wipe(line)


def _line() -> bytearray:
    """One line, its end included; what there was, at the end of input."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < 2 * LONGEST:
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """What is typed does not appear."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    quiet = termios.tcgetattr(0)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
