"""A dataset becomes a pool's container: looked at, claimed, given back."""

import contextlib
from collections.abc import Mapping
from typing import Any

from ..zfs import channel, commands, importexport, keys, lzc
from ..zfs.errors import Busy, Exists, NotFound
from . import messages, naming, policy
from .policy import HOME_SETTINGS


async def adopt(
    name: str, container: str, home: str, compression: str | None
) -> None:
    """Make *container* the one of the pool *name*; all of it or nothing.

    :param home: the dataset below which the qubes' datasets will be
    :param compression: set on *home*; None: as the container has it
    :raises policy.Refused: if it cannot be this pool's
    :raises ZfsError: if ZFS refuses
    """
    found = await look(container, home)
    why = _obstacle(name, container, home, found)
    if why:
        raise policy.Refused(why)
    if found.get("home"):
        await policy.check(policy.Place(name, container, home, False))
        await _make_missing_nodes(home)
    async with contextlib.AsyncExitStack() as undo:
        if not found.get("exists"):
            await lzc.create_filesystem(
                container, {**HOME_SETTINGS, naming.OWNER: name}
            )
            undo.push_async_callback(_destroy, container)
        elif "owner" not in found:
            await claim(container, name)
            undo.push_async_callback(claim, container, name, True)
        if not found.get("home"):
            await lzc.create_filesystem(home, HOME_SETTINGS)
            undo.push_async_callback(_destroy, home)
        if compression:
            await commands.set_property(home, "compression", compression)
        undo.pop_all()


async def look(container: str, home: str) -> Mapping[str, Any]:
    """What is where a container is or will be; see container.lua."""
    question = {
        "container": container,
        "home": home,
        "owner": naming.OWNER,
        "prefix": naming.PREFIX,
    }
    found: Mapping[str, Any] = await channel.read(
        "container", container, question
    )
    return found


async def _make_missing_nodes(home: str) -> None:
    """Have ZFS make the nodes that an import by ``qvm-zfs attach`` left out."""
    if not (await keys.state(home)).locked:
        await importexport.make_nodes(home, only_if_missing=True)


async def _destroy(dataset: str) -> None:
    with contextlib.suppress(NotFound):
        await lzc.destroy(dataset)


async def destroy_empty(dataset: str) -> None:
    """Take away a dataset made a moment ago, unless it has children now."""
    with contextlib.suppress(NotFound, Busy, Exists):
        await lzc.destroy(dataset)


async def claim(container: str, name: str, release: bool = False) -> None:
    """Mark *container* as the pool *name*'s; or, to release it, as nobody's.

    :raises policy.Refused: if it is another pool's
    """
    question = {
        "container": container,
        "owner": naming.OWNER,
        "pool": name,
        "release": release,
    }
    owner = await channel.change("claim", container, question)
    if owner is not None:
        raise policy.Refused(policy.claimed(container, owner))


def obstacle(name: str, container: str, found: Mapping[str, Any]) -> str:
    """Why *container* cannot be the pool's; empty if it can."""
    owner, above = found.get("owner"), found.get("owner_above")
    if not found["parent"]:
        return f"the dataset above {container} does not exist; create it first"
    if found.get("exists") and found["type"] != "filesystem":
        return f"{container} is a {found['type']}, not a filesystem"
    if owner not in (None, name):
        return policy.claimed(container, owner)
    if above and f"{container}/".startswith(f"{above}/vm/"):
        return f"{container} is where another pool keeps its qubes"
    return ""


def _obstacle(
    name: str, container: str, home: str, found: Mapping[str, Any]
) -> str:
    why = obstacle(name, container, found)
    if why:
        return why
    owner = found.get("owner")
    if found.get("bare"):
        return messages.CONTAINER_BARE.format(dataset=container)
    if found.get("home") and owner is None:
        return (
            f"{home} exists and is not this driver's; choose another container"
        )
    return ""
