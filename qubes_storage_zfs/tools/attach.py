"""Import the zpool of a pool whose disk was away."""

import argparse
from collections.abc import Sequence

from ..store import messages, naming, policy
from ..store.rundir import RUN_DIR
from ..zfs import importexport, keys, lzc
from ..zfs.errors import CommandFailed, NoModule, NoPassphrase
from ..zfs.importexport import Found
from ..zfs.threads import NO_ZPOOL
from .common import Failed, Pool, configured, qubesd, slow
from .output import say, warn

NOT_NOTED = (
    "The guid of {zpool} was not noted when {pool} was added; it is told by"
    " its name."
)
OTHERS = (
    "{count} volumes in {zpool} are no qubes', and have no device in dom0;"
    " 'sudo zfs set volmode=dev NAME' gives one to {example}."
)


class Gone(Failed):
    """A pool is not in the zpool."""


class Changed(Failed):
    """A property of what is in a pool is not allowed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("pool", metavar="POOL", nargs="?")
    which.add_argument(
        "--zpool",
        metavar="NAME",
        help="a zpool that carries no pool of qubesd yet",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also if another system had it last and did not export it",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="also if a property is not allowed, without any device",
    )


async def run(given: argparse.Namespace) -> int:
    pools = configured(qubesd())
    pool = None if given.pool is None else _named(given.pool, pools)
    zpool = given.zpool if pool is None else pool.zpool
    if pool is None:
        _must_have_no_pool(zpool, pools)
    if lzc.module_version() is None:
        raise NoModule(zpool, call="import")
    if importexport.guid(zpool) is not None:
        if pool is not None:
            await _check_imported(pool)
            await _make_nodes([pool], only_if_missing=True)
        say(f"{given.pool or zpool} is attached already.")
        return 0
    async with slow(f"Looking for {zpool}"):
        paths = await lzc.in_thread(NO_ZPOOL, importexport.block_devices)
        found = await importexport.on_devices(paths)
    chosen = _choose(zpool, pool, found, given.force)
    # other pools in the same zpool come with it
    mates = [
        each
        for each in pools
        if each.zpool == zpool and each.guid in (None, chosen.guid)
    ]
    async with slow(f"Importing {zpool}"):
        mates = await _take_in(chosen, paths, pool, mates, given.repair)
    await _make_nodes(mates)
    await _tell(pool, chosen, mates)
    return 0


async def _make_nodes(
    pools: Sequence[Pool], only_if_missing: bool = False
) -> None:
    async with slow("Waiting for devices"):
        for pool in pools:
            # what is locked gets them when its key is loaded
            if not (await keys.state(pool.home)).locked:
                await importexport.make_nodes(pool.home, only_if_missing)


def _must_have_no_pool(zpool: str, pools: Sequence[Pool]) -> None:
    """Check the name given for a zpool.

    :raises Failed: if it cannot be one, or qubesd has pools on it
    """
    try:
        naming.dataset_name(zpool)
        if "/" in zpool:
            raise naming.BadName(f"{zpool} is a dataset; name its zpool")
    except naming.BadName as exc:
        raise Failed(str(exc)) from exc
    names = [pool.name for pool in pools if pool.zpool == zpool]
    if names:
        raise Failed(
            messages.ZPOOL_HAS_POOLS.format(
                zpool=zpool, pools=", ".join(names), pool=names[0]
            )
        )


async def _check_imported(pool: Pool) -> None:
    """:raises Failed: if what is imported is another zpool, or not allowed"""
    imported = importexport.guid(pool.zpool)
    if pool.guid not in (None, imported):
        raise Failed(_is_another(pool, "that is imported", str(imported)))
    async with slow(f"Looking at {pool.name}"):
        await _check(pool)


def _named(name: str, pools: Sequence[Pool]) -> Pool:
    for pool in pools:
        if pool.name == name:
            return pool
    raise Failed(
        f"qubesd has no ZFS pool {name}; 'qvm-pool list' lists its pools"
    )


def _is_another(pool: Pool, where: str, other: str) -> str:
    return messages.ZPOOL_IS_ANOTHER.format(
        pool=pool.name,
        zpool=pool.zpool,
        guid=pool.guid,
        where=where,
        other=other,
    )


def _choose(
    zpool: str, pool: Pool | None, found: Sequence[Found], force: bool
) -> Found:
    """Choose the zpool to import from all that are on disks.

    :param pool: that is to be in it; None: none of qubesd
    :raises Failed: unless exactly one fits and can be imported
    """
    named = [each for each in found if each.name == zpool]
    if not named:
        raise Failed(messages.ZPOOL_NOWHERE.format(zpool=zpool))
    guids = ", ".join(sorted(each.guid for each in named))
    noted = None if pool is None else pool.guid
    right = [each for each in named if noted in (None, each.guid)]
    if pool is not None and not right:
        raise Failed(_is_another(pool, "on the disks that are here", guids))
    if len(right) > 1:
        sentence = messages.ZPOOLS_OF_A_NAME
        if pool is not None and noted is None:
            sentence = messages.ZPOOL_SEVERAL
        raise Failed(
            sentence.format(
                zpool=zpool, guids=guids, pool=pool.name if pool else ""
            )
        )
    (chosen,) = right
    names = sorted({x.name for x in found if x.guid == chosen.guid})
    if len(names) > 1:
        raise Failed(
            messages.ZPOOL_NAMES.format(
                guid=chosen.guid, names=", ".join(map(policy.shown, names))
            )
        )
    if chosen.elsewhere and not force:
        raise Failed(messages.ZPOOL_ELSEWHERE.format(zpool=zpool))
    if chosen.state not in ("ONLINE", "DEGRADED"):
        raise Failed(
            messages.ZPOOL_BROKEN.format(
                zpool=zpool,
                status=chosen.status or chosen.state,
                devices=", ".join(chosen.devices) or "no device is missing",
            )
        )
    return chosen


async def _take_in(
    chosen: Found,
    paths: Sequence[str],
    pool: Pool | None,
    mates: Sequence[Pool],
    repair: bool,
) -> list[Pool]:
    """Import, and export again what is not as it must be.

    No zvol of it has a device before it was looked at.

    :param repair: leave it imported if a property is not allowed
    :return: those of *mates* that are there
    :raises Failed: if it was not imported
    """
    async with importexport.no_new_nodes():
        try:
            altroot = str(RUN_DIR / "mounts" / chosen.name)
            await importexport.take_in(
                chosen.guid, paths, altroot, force=chosen.elsewhere
            )
            await _check_zpool(chosen)
            return await _check_all(pool, mates, repair)
        except BaseException as exc:
            # whatever its name is now
            for name in importexport.names_of(chosen.guid):
                await importexport.give_back(name)
            if isinstance(exc, CommandFailed):
                if importexport.had_elsewhere(exc.output):
                    zpool = chosen.name
                    why = messages.ZPOOL_ELSEWHERE.format(zpool=zpool)
                    raise Failed(why) from exc
            raise


async def _check_zpool(chosen: Found) -> None:
    """:raises Failed: if it has another name, or a property is not right"""
    names = importexport.names_of(chosen.guid)
    if names != [chosen.name]:
        raise Failed(
            messages.ZPOOL_OTHER_NAME.format(
                zpool=chosen.name,
                name=", ".join(map(policy.shown, names)) or "-",
            )
        )
    wrong = await importexport.wrong_zpool_property(chosen.name)
    if wrong is not None:
        name, value, wanted = wrong
        raise Failed(
            messages.ZPOOL_PROPERTY.format(
                zpool=chosen.name,
                property=name,
                value=policy.shown(value),
                wanted=wanted,
            )
        )


async def _check_all(
    pool: Pool | None, mates: Sequence[Pool], repair: bool
) -> list[Pool]:
    """Return those of *mates* that are there and may have devices.

    :raises Gone: if *pool* is not
    :raises Changed: if a property of one is not allowed, unless *repair*
    """
    there = []
    for each in mates:
        try:
            await _check(each)
        except Gone:
            if each is pool:
                raise
        except Changed as exc:
            if not repair:
                raise
            say(f"{exc}.")
        else:
            there.append(each)
    return there


async def _check(pool: Pool) -> None:
    """Check that a pool is as it was when it went away.

    :raises Gone: if it is not there
    :raises Changed: if a property is not allowed
    """
    try:
        await policy.check(pool.place)
    except policy.NotThere as exc:
        raise Gone(str(exc)) from exc
    except policy.Refused as exc:
        raise Changed(str(exc)) from exc
    except NoPassphrase as exc:
        raise Changed(messages.reason(exc)) from exc


async def _tell(
    pool: Pool | None, chosen: Found, mates: Sequence[Pool]
) -> None:
    if pool is not None and pool.guid is None:
        say(NOT_NOTED.format(zpool=chosen.name, pool=pool.name))
    if chosen.state != "ONLINE":
        broken = ", ".join(chosen.devices)
        warn(f"{chosen.name} is {chosen.state}: {broken}")
    if pool is not None and pool not in mates:
        say(
            f"{chosen.name} is imported, without devices. Repair it, then run"
            f" 'sudo qvm-zfs attach {pool.name}'."
        )
        return
    homes = tuple(each.home + "/" for each in mates)
    others = [
        name
        for name in await importexport.volumes(chosen.name)
        if not name.startswith(homes)
    ]
    if others:
        say(
            OTHERS.format(
                count=len(others),
                zpool=chosen.name,
                example=policy.shown(others[0]),
            )
        )
    name = pool.name if pool is not None else chosen.name
    also = ", ".join(each.name for each in mates if each is not pool)
    say(f"{name} is attached{', and with it ' + also if also else ''}.")
