# SPDX-License-Identifier: BSD-2-Clause
"""A dataset becomes a pool's container: checked, claimed, released."""

import contextlib

from ..zfs import commands, importexport, keys, lzc
from ..zfs.errors import Busy, Exists, NotFound
from . import messages, naming, policy, pool_programs
from .policy import ROOT_SETTINGS
from .pool_programs import ContainerState


async def set_up(
    name: str, container: str, qubes_root: str, compression: str | None
) -> None:
    """Make *container* the one of the pool *name*; all of it or nothing.

    :param qubes_root: the dataset below which the qubes' datasets will be
    :param compression: set on *qubes_root*; None: as the container has it
    :raises policy.Refused: if it cannot be this pool's
    :raises ZfsError: if ZFS refuses
    """
    state = await pool_programs.container(container, qubes_root)
    check_claimable(name, container, state)
    if state.bare:
        raise policy.Refused(messages.CONTAINER_BARE, dataset=container)
    if state.qubes_root and state.claimed_by is None:
        raise policy.Refused(messages.HOME_EXISTS, dataset=qubes_root)
    if state.qubes_root:
        await policy.check(policy.Place(name, container, qubes_root, False))
        await _make_missing_nodes(qubes_root)
    async with contextlib.AsyncExitStack() as undo:
        if not state.exists:
            await lzc.create_filesystem(
                container, {**ROOT_SETTINGS, naming.CLAIM: name}
            )
            undo.push_async_callback(_destroy, container)
        elif state.claimed_by is None:
            await claim(container, name)
            undo.push_async_callback(claim, container, name, True)
        if not state.qubes_root:
            await lzc.create_filesystem(qubes_root, ROOT_SETTINGS)
            undo.push_async_callback(_destroy, qubes_root)
        if compression:
            await commands.set_property(qubes_root, "compression", compression)
        undo.pop_all()


async def _make_missing_nodes(qubes_root: str) -> None:
    """Have ZFS make the nodes that an import by ``qvm-zfs attach`` left out."""
    if not (await keys.state(qubes_root)).locked:
        await importexport.create_nodes(qubes_root, only_if_missing=True)


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
    other_pool = await pool_programs.claim(container, name, release)
    if other_pool is not None:
        raise policy.claimed(container, other_pool)


def check_claimable(name: str, container: str, state: ContainerState) -> None:
    """Refuse a dataset that cannot be the container of the pool *name*.

    :raises policy.Refused: with the reason
    """
    claimed_by, above = state.claimed_by, state.claimed_above
    if not state.parent:
        raise policy.Refused(messages.NO_PARENT, dataset=container)
    if state.exists and state.type != "filesystem":
        raise policy.Refused(
            messages.NOT_A_FILESYSTEM, dataset=container, type=state.type
        )
    if claimed_by is not None and claimed_by != name:
        raise policy.claimed(container, claimed_by)
    if above and f"{container}/".startswith(f"{above}/vm/"):
        raise policy.Refused(messages.IN_ANOTHER_POOL, dataset=container)
