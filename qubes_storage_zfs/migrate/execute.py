"""Read the datasets of a pool that is migrated, and carry out a plan."""

from ..store import naming, policy
from ..zfs import channel, commands, lzc
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
    """Ask ZFS about all datasets of the pool; program adoptable.lua.

    :raises ZfsError: if ZFS cannot be asked
    """
    question = {
        "container": pool.container,
        "home": pool.home,
        "old": pool.old,
        "prefix": naming.PREFIX,
        "settings": list(SETTINGS),
        "zvol_settings": list(ZVOL_SETTINGS),
    }
    await lzc.sync(pool.container)
    return Disk.parse(await channel.read("adoptable", pool.container, question))


async def carry_out(plan: Plan) -> None:
    """Carry out the steps in their order.

    :raises ZfsError: if ZFS refuses one; the plan of what remains can be made
        again
    """
    for step in plan.steps:
        await _carry_out(step)


async def _carry_out(step: Step) -> None:
    match step:
        case CreateRoot(dataset=dataset):
            await lzc.create_filesystem(
                dataset, policy.HOME_SETTINGS, mountable=False
            )
        case SetProperties(dataset=dataset, settings=settings):
            for name, value in settings.items():
                await commands.set_property(dataset, name, value)
        case RenameDataset(dataset=dataset, new=new):
            await commands.rename(dataset, new)
        case ChangeTogether(dataset=dataset, changes=changes):
            arguments = [change.arguments for change in changes]
            await channel.change("changes", dataset, {"changes": arguments})
