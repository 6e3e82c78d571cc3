# SPDX-License-Identifier: BSD-2-Clause
"""Import the zpool of a pool whose disk was away."""

import argparse
from collections.abc import Sequence

from ..store import messages, naming, policy
from ..store.rundir import RUN_DIR
from ..zfs import importexport, keys, lzc
from ..zfs.errors import CommandFailed, NoModule, NoPassphrase
from ..zfs.importexport import ImportableZpool
from ..zfs.threads import NO_ZPOOL
from .common import Failed, Pool, configured, qubesd, slow
from .output import say, warn

NOT_RECORDED = (
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
    """Add the arguments of the subcommand."""
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


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    pools = configured(qubesd())
    pool = None
    if arguments.pool is not None:
        pool = _configured_pool(arguments.pool, pools)
    zpool = arguments.zpool if pool is None else pool.zpool
    if pool is None:
        _must_have_no_pool(zpool, pools)
    if lzc.module_version() is None:
        raise NoModule(zpool, call="import")
    if importexport.guid(zpool) is not None:
        if pool is not None:
            await _check_imported(pool)
            await _make_nodes([pool], only_if_missing=True)
        say(f"{arguments.pool or zpool} is attached already.")
        return 0
    async with slow(f"Looking for {zpool}"):
        paths = await lzc.in_thread(NO_ZPOOL, importexport.block_devices)
        candidates = await importexport.search_devices(paths)
    chosen = _choose(zpool, pool, candidates)
    _must_be_importable(chosen, arguments.force)
    # other pools in the same zpool come with it
    mates = [
        mate
        for mate in pools
        if mate.zpool == zpool and mate.guid in (None, chosen.guid)
    ]
    async with slow(f"Importing {zpool}"):
        mates = await _import(chosen, paths, pool, mates, arguments.repair)
    await _make_nodes(mates)
    await _report(pool, chosen, mates)
    return 0


async def _make_nodes(
    pools: Sequence[Pool], only_if_missing: bool = False
) -> None:
    async with slow("Waiting for devices"):
        for pool in pools:
            # ZFS makes the nodes of a locked pool when its key is loaded
            if not (await keys.state(pool.qubes_root)).locked:
                await importexport.create_nodes(
                    pool.qubes_root, only_if_missing
                )


def _must_have_no_pool(zpool: str, pools: Sequence[Pool]) -> None:
    """Check the name given for a zpool.

    :raises Failed: if it cannot be one, or qubesd has pools on it
    """
    try:
        naming.dataset_name(zpool)
        if "/" in zpool:
            raise naming.BadName(messages.NOT_A_ZPOOL, name=zpool)
    except naming.BadName as exc:
        raise Failed(str(exc)) from exc
    names = [pool.name for pool in pools if pool.zpool == zpool]
    if names:
        raise Failed(
            messages.ZPOOL_HAS_POOLS,
            zpool=zpool,
            pools=", ".join(names),
            pool=names[0],
        )


async def _check_imported(pool: Pool) -> None:
    """Check a pool whose zpool is imported.

    :raises Failed: if that is another zpool, or a property is not allowed
    """
    imported = importexport.guid(pool.zpool)
    if pool.guid not in (None, imported):
        raise _is_another(pool, "that is imported", str(imported))
    async with slow(f"Looking at {pool.name}"):
        await _check(pool)


def _configured_pool(name: str, pools: Sequence[Pool]) -> Pool:
    for pool in pools:
        if pool.name == name:
            return pool
    raise Failed(messages.POOL_UNKNOWN, pool=name)


def _is_another(pool: Pool, where: str, other: str) -> Failed:
    return Failed(
        messages.ZPOOL_IS_ANOTHER,
        pool=pool.name,
        zpool=pool.zpool,
        guid=pool.guid,
        where=where,
        other=other,
    )


def _choose(
    zpool: str, pool: Pool | None, candidates: Sequence[ImportableZpool]
) -> ImportableZpool:
    """Choose the zpool to import.

    :param pool: the pool that is to be in it; None: no pool of qubesd
    :param candidates: all zpools on disks that are not imported
    :raises Failed: unless exactly one fits, by one name
    """
    named = [item for item in candidates if item.name == zpool]
    if not named:
        raise Failed(messages.ZPOOL_NOWHERE, zpool=zpool)
    guids = ", ".join(sorted(item.guid for item in named))
    recorded = None if pool is None else pool.guid
    right = [item for item in named if recorded in (None, item.guid)]
    if pool is not None and not right:
        raise _is_another(pool, "on the disks that are here", guids)
    if len(right) > 1:
        if pool is not None and recorded is None:
            raise Failed(
                messages.ZPOOL_SEVERAL,
                zpool=zpool,
                guids=guids,
                pool=pool.name,
            )
        raise Failed(messages.ZPOOLS_OF_A_NAME, zpool=zpool, guids=guids)
    (chosen,) = right
    names = {item.name for item in candidates if item.guid == chosen.guid}
    if len(names) > 1:
        shown = ", ".join(map(policy.shown, sorted(names)))
        raise Failed(messages.ZPOOL_NAMES, guid=chosen.guid, names=shown)
    return chosen


def _must_be_importable(chosen: ImportableZpool, force: bool) -> None:
    """Refuse a zpool that another machine has, or whose disks are missing.

    :param force: take it from another machine
    :raises Failed: if it cannot be imported
    """
    if chosen.is_used_elsewhere and not force:
        raise Failed(messages.ZPOOL_ELSEWHERE, zpool=chosen.name)
    if chosen.state not in ("ONLINE", "DEGRADED"):
        raise Failed(
            messages.ZPOOL_BROKEN,
            zpool=chosen.name,
            status=chosen.status or chosen.state,
            devices=", ".join(chosen.devices) or "no device is missing",
        )


async def _import(
    chosen: ImportableZpool,
    paths: Sequence[str],
    pool: Pool | None,
    mates: Sequence[Pool],
    repair: bool,
) -> list[Pool]:
    """Import a zpool; export it again if it is not as it must be.

    No zvol in it has a device before it was checked.

    :param mates: all pools of qubesd that may be in it
    :param repair: leave it imported if a property is not allowed
    :return: those of *mates* that exist and may have devices
    :raises Failed: if it was not imported
    """
    async with importexport.no_new_nodes():
        try:
            altroot = str(RUN_DIR / "mounts" / chosen.name)
            await importexport.import_zpool(
                chosen.guid, paths, altroot, force=chosen.is_used_elsewhere
            )
            await _check_zpool(chosen)
            return await _check_all(pool, mates, repair)
        except BaseException as exc:
            # by its present names: the disk may have changed it
            for name in importexport.names_of(chosen.guid):
                await importexport.export_zpool(name)
            if isinstance(exc, CommandFailed):
                if importexport.used_elsewhere(exc.output):
                    raise Failed(
                        messages.ZPOOL_ELSEWHERE, zpool=chosen.name
                    ) from exc
            raise


async def _check_zpool(chosen: ImportableZpool) -> None:
    """Check the name and the properties of a zpool that was imported.

    :raises Failed: if one of them is not right
    """
    names = importexport.names_of(chosen.guid)
    if names != [chosen.name]:
        raise Failed(
            messages.ZPOOL_OTHER_NAME,
            zpool=chosen.name,
            name=", ".join(map(policy.shown, names)) or "-",
        )
    wrong = await importexport.wrong_zpool_property(chosen.name)
    if wrong is not None:
        name, value, right = wrong
        raise Failed(
            messages.ZPOOL_PROPERTY,
            zpool=chosen.name,
            property=name,
            value=policy.shown(value),
            wanted=right,
        )


async def _check_all(
    pool: Pool | None, mates: Sequence[Pool], repair: bool
) -> list[Pool]:
    """Return those of *mates* that exist and may have devices.

    :param repair: print what is not allowed
    :raises Gone: if *pool* does not exist
    :raises Changed: if a property is not allowed, unless *repair*
    """
    usable = []
    for mate in mates:
        try:
            await _check(mate)
        except Gone:
            if mate is pool:
                raise
        except Changed as exc:
            if not repair:
                raise
            say(f"{exc}.")
        else:
            usable.append(mate)
    return usable


async def _check(pool: Pool) -> None:
    """Check that a pool is as it was when it was detached.

    :raises Gone: if it does not exist
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


async def _report(
    pool: Pool | None, chosen: ImportableZpool, mates: Sequence[Pool]
) -> None:
    if pool is not None and pool.guid is None:
        say(NOT_RECORDED.format(zpool=chosen.name, pool=pool.name))
    if chosen.state != "ONLINE":
        broken = ", ".join(chosen.devices)
        warn(f"{chosen.name} is {chosen.state}: {broken}")
    if pool is not None and pool not in mates:
        say(
            f"{chosen.name} is imported, without devices. Repair it, then run"
            f" 'sudo qvm-zfs attach {pool.name}'."
        )
        return
    qubes_roots = tuple(mate.qubes_root + "/" for mate in mates)
    others = [
        name
        for name in await importexport.volumes(chosen.name)
        if not name.startswith(qubes_roots)
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
    also = ", ".join(mate.name for mate in mates if mate is not pool)
    say(f"{name} is attached{', and with it ' + also if also else ''}.")
