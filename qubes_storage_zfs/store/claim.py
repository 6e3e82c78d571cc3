# SPDX-License-Identifier: BSD-2-Clause
"""Check a dataset, claim it as a pool's container, and release it."""

import contextlib

from ..zfs import commands, importexport, keys, lzc
from ..zfs.errors import Busy, Exists, NotFound
from . import messages, naming, policy, pool_programs
from .policy import ROOT_SETTINGS
from .pool_programs import ContainerState


async def set_up(
    name: str, container: str, qubes_root: str, compression: str | None
) -> None:
    """Make *container* the container of the pool *name*.

    Create the container and the qubes root if they are missing.  If a step
    fails, undo the earlier ones.

    :param qubes_root: the qubes root in *container*
    :param compression: value to set on *qubes_root*; None: set none
    :raises policy.Refused: if the dataset cannot be this pool's container
    :raises ZfsError: if ZFS refuses a step
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
    """Have ZFS create the nodes that are missing after ``qvm-zfs attach``."""
    if not (await keys.state(qubes_root)).locked:
        await importexport.create_nodes(qubes_root, only_if_missing=True)


async def _destroy(dataset: str) -> None:
    with contextlib.suppress(NotFound):
        await lzc.destroy(dataset)


async def destroy_empty(dataset: str) -> None:
    """Destroy a dataset that was just created, unless it has children."""
    with contextlib.suppress(NotFound, Busy, Exists):
        await lzc.destroy(dataset)


async def claim(container: str, name: str, release: bool = False) -> None:
    """Claim *container* for the pool *name*, or release it.

    :param release: remove the pool's mark instead of setting it
    :raises policy.Refused: if another pool has claimed it
    :raises ZfsError: if ZFS refuses
    """
    other_pool = await pool_programs.claim(container, name, release)
    if other_pool is not None:
        raise policy.claimed(container, other_pool)


def check_claimable(name: str, container: str, state: ContainerState) -> None:
    """Refuse a dataset that cannot be the container of the pool *name*.

    :param state: what is at the place of *container*
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
