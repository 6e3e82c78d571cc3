# SPDX-License-Identifier: BSD-2-Clause
"""A dataset becomes a pool's container: looked at, claimed, given back."""

import contextlib

from ..zfs import commands, importexport, keys, lzc
from ..zfs.errors import Busy, Exists, NotFound
from . import messages, naming, policy, pool_programs
from .policy import HOME_SETTINGS
from .pool_programs import Found


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
    if found.home:
        await policy.check(policy.Place(name, container, home, False))
        await _make_missing_nodes(home)
    async with contextlib.AsyncExitStack() as undo:
        if not found.exists:
            await lzc.create_filesystem(
                container, {**HOME_SETTINGS, naming.OWNER: name}
            )
            undo.push_async_callback(_destroy, container)
        elif found.owner is None:
            await claim(container, name)
            undo.push_async_callback(claim, container, name, True)
        if not found.home:
            await lzc.create_filesystem(home, HOME_SETTINGS)
            undo.push_async_callback(_destroy, home)
        if compression:
            await commands.set_property(home, "compression", compression)
        undo.pop_all()


async def look(container: str, home: str) -> Found:
    """What is where a container is or will be."""
    return await pool_programs.container(container, home)


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
    owner = await pool_programs.claim(container, name, release)
    if owner is not None:
        raise policy.Refused(policy.claimed(container, owner))


def obstacle(name: str, container: str, found: Found) -> str:
    """Why *container* cannot be the pool's; empty if it can."""
    owner, above = found.owner, found.owner_above
    if not found.parent:
        return f"the dataset above {container} does not exist; create it first"
    if found.exists and found.type != "filesystem":
        return f"{container} is a {found.type}, not a filesystem"
    if owner is not None and owner != name:
        return policy.claimed(container, owner)
    if above and f"{container}/".startswith(f"{above}/vm/"):
        return f"{container} is where another pool keeps its qubes"
    return ""


def _obstacle(name: str, container: str, home: str, found: Found) -> str:
    why = obstacle(name, container, found)
    if why:
        return why
    if found.bare:
        return messages.CONTAINER_BARE.format(dataset=container)
    if found.home and found.owner is None:
        return (
            f"{home} exists and is not this driver's; choose another container"
        )
    return ""
