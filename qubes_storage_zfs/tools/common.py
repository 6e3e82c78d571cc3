"""What the verbs share: which pools there are, and who is asked."""

import asyncio
import contextlib
import importlib
import json
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


@contextlib.contextmanager
def terminal(pool: str) -> Iterator[keys.Prompt]:
    """What shows the prompts for *pool*; the keyholder reads the answers.

    Afterwards the terminal is as it was, also if the keyholder was killed
    while it did not show what is typed.
    """
    before = _modes()

    async def prompt(purpose: str, _: int) -> None:
        if before is not None:
            text = TEXTS[purpose].format(pool=pool)
            print(text, end="", file=sys.stderr, flush=True)

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
