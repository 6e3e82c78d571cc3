# SPDX-License-Identifier: BSD-2-Clause
"""Read the datasets of a pool that is to be migrated; carry out a plan."""

from ..store import policy, pool_programs
from ..zfs import commands, lzc
from .disk import SETTINGS, ZVOL_SETTINGS, Disk
from .pools import MigratingPool
from .steps import (
    ChangeTogether,
    CreateRoot,
    Plan,
    RenameDataset,
    SetProperties,
    Step,
)


async def read_disk(pool: MigratingPool) -> Disk:
    """Return all datasets of the pool, as migratable.lua reports them.

    Data that was written before the call is counted.

    :raises ZfsError: if ZFS cannot be asked
    """
    await lzc.sync(pool.container)
    reply = await pool_programs.migratable(
        pool.container, pool.qubes_root, pool.old, SETTINGS, ZVOL_SETTINGS
    )
    return Disk.parse(reply)


async def carry_out(plan: Plan) -> None:
    """Carry out the steps in their order.

    :raises ZfsError: if ZFS refuses a step; a new plan has the remaining steps
    """
    for step in plan.steps:
        await _carry_out(step)


async def _carry_out(step: Step) -> None:
    match step:
        case CreateRoot(dataset=dataset):
            await lzc.create_filesystem(
                dataset, policy.ROOT_SETTINGS, mountable=False
            )
        case SetProperties(dataset=dataset, settings=settings):
            for name, value in settings.items():
                await commands.set_property(dataset, name, value)
        case RenameDataset(dataset=dataset, new=new):
            await commands.rename(dataset, new)
        case ChangeTogether(dataset=dataset, changes=changes):
            arguments = [change.arguments for change in changes]
            await pool_programs.change(dataset, arguments)
