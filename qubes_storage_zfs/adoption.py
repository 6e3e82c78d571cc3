"""A dataset becomes a pool's container: looked at, claimed, given back."""

import contextlib
from collections.abc import Mapping
from typing import Any

from . import layout, policy, sentences
from .errors import refusal
from .policy import HOME_PROPERTIES
from .zfs import channel, core, keys, native, removable
from .zfs.errors import Busy, Exists, NotFound


async def adopt(
    name: str, container: str, home: str, compression: str | None, what: str
) -> None:
    """Make *container* the one of the pool *name*; all of it or nothing.

    :param home: the dataset below which the qubes' datasets will be
    :param compression: set on *home*; None: as the container has it
    :param what: what a refusal says could not be done
    :raises StoragePoolException: if it cannot be this pool's
    :raises ZfsError: if ZFS refuses
    """
    found = await look(container, home)
    why = _obstacle(name, container, home, found)
    if why:
        raise refusal(what, why)
    if found.get("home"):
        await policy.check(policy.Place(name, container, home, False))
        await _make_missing_nodes(home)
    async with contextlib.AsyncExitStack() as undo:
        if not found.get("exists"):
            await core.create_filesystem(
                container, {**HOME_PROPERTIES, layout.OWNER: name}
            )
            undo.push_async_callback(_destroy, container)
        elif "owner" not in found:
            await claim(container, name)
            undo.push_async_callback(claim, container, name, True)
        if not found.get("home"):
            await core.create_filesystem(home, HOME_PROPERTIES)
            undo.push_async_callback(_destroy, home)
        if compression:
            await native.set_property(home, "compression", compression)
        undo.pop_all()


async def look(container: str, home: str) -> Mapping[str, Any]:
    """What is where a container is or will be; see container.lua."""
    question = {
        "container": container,
        "home": home,
        "owner": layout.OWNER,
        "prefix": layout.PREFIX,
    }
    found: Mapping[str, Any] = await channel.read(
        "container", container, question
    )
    return found


async def _make_missing_nodes(home: str) -> None:
    """Have ZFS make the nodes that an import by ``qvm-zfs attach`` left out."""
    if not (await keys.state(home)).locked:
        await removable.make_nodes(home, only_if_missing=True)


async def _destroy(dataset: str) -> None:
    with contextlib.suppress(NotFound):
        await core.destroy(dataset)


async def destroy_empty(dataset: str) -> None:
    """Take away a dataset made a moment ago, unless it has children now."""
    with contextlib.suppress(NotFound, Busy, Exists):
        await core.destroy(dataset)


async def claim(container: str, name: str, release: bool = False) -> None:
    """Mark *container* as the pool *name*'s; or, to release it, as nobody's.

    :raises StoragePoolException: if it is another pool's
    """
    question = {
        "container": container,
        "owner": layout.OWNER,
        "pool": name,
        "release": release,
    }
    owner = await channel.change("claim", container, question)
    if owner is not None:
        raise refusal(
            f"Cannot claim {container}",
            policy.claimed(container, owner),
        )


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
        return sentences.CONTAINER_BARE.format(dataset=container)
    if found.get("home") and owner is None:
        return (
            f"{home} exists and is not this driver's; choose another container"
        )
    return ""
