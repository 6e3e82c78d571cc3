"""A dataset becomes a pool's container: looked at, claimed, given back."""

import contextlib
from collections.abc import Mapping
from typing import Any

from . import layout, sentences
from .errors import refusal
from .zfs import channel, core, native
from .zfs.errors import Busy, Exists, NotFound

#: of the dataset that holds the qubes' datasets, set in the call that makes
#: it: they keep dom0 from reading what qubes wrote, and what is below from
#: being mounted
HOME_PROPERTIES: Mapping[str, core.Value] = {
    "mountpoint": "none",
    "volmode": core.VOLMODE_DEV,
    "snapdev": core.SNAPDEV_HIDDEN,
    layout.UDEV_FLAG: "true",
    layout.AUTO_SNAPSHOT: "false",
}


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
        "flag": layout.UDEV_FLAG,
        "prefix": layout.PREFIX,
    }
    found: Mapping[str, Any] = await channel.read(
        "container", container, question
    )
    return found


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
            sentences.CONTAINER_CLAIMED.format(
                dataset=container, owner=owner, property=layout.OWNER
            ),
        )


def obstacle(name: str, container: str, found: Mapping[str, Any]) -> str:
    """Why *container* cannot be the pool's; empty if it can."""
    owner, above = found.get("owner"), found.get("owner_above")
    if not found["parent"]:
        return f"the dataset above {container} does not exist; create it first"
    if found.get("exists") and found["type"] != "filesystem":
        return f"{container} is a {found['type']}, not a filesystem"
    if owner not in (None, name):
        return sentences.CONTAINER_CLAIMED.format(
            dataset=container, owner=owner, property=layout.OWNER
        )
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
    safe = found.get("flag") == "true" and found.get("volmode") == "dev"
    if found.get("home") and not safe:
        return (
            f"{home} must have {layout.UDEV_FLAG}=true and volmode=dev, so"
            " that dom0 never reads what qubes wrote; set them with 'zfs set'"
        )
    return ""
