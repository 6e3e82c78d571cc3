# SPDX-License-Identifier: BSD-2-Clause
"""Import the zpool of a pool after its disk was connected.

attach searches disks, partitions, LUKS and md devices that are not in use.  It
imports the zpool with the GUID that qubes.xml records, and checks every dataset
of the pool before a volume gets a device.  It mounts nothing and loads no key.
"""

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
    "qubes.xml does not record the GUID of {zpool} for {pool}, so the zpool was"
    " identified by its name alone"
)
OTHER_VOLUME = (
    "1 volume in {zpool} belongs to no qube and has no device in dom0:"
    " {example}; to create its device, run 'sudo zfs set volmode=dev NAME'"
)
OTHER_VOLUMES = (
    "{count} volumes in {zpool} belong to no qube and have no devices in dom0,"
    " such as {example}; to create a device, run 'sudo zfs set volmode=dev NAME'"
)


class PoolMissing(Failed):
    """The pool does not exist in the zpool."""


class NotAllowed(Failed):
    """A dataset of the pool has a property that is not allowed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    name = parser.add_mutually_exclusive_group(required=True)
    name.add_argument(
        "pool",
        metavar="POOL",
        nargs="?",
        help="pool of qubesd whose zpool is imported, together with all other"
        " pools in that zpool",
    )
    name.add_argument(
        "--zpool",
        metavar="NAME",
        help="import the zpool NAME, which has no pool of qubesd yet; its"
        " volumes get no devices until 'qvm-pool add' checks the container",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="import the zpool although another system used it last and did"
        " not export it (default: refuse); if the other system still writes to"
        " it, the zpool is lost",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="keep the zpool imported although a property is not allowed, so"
        " that it can be corrected (default: export it again); the pool has no"
        " devices and its qubes do not start",
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
        say(f"{arguments.pool or zpool} is already attached")
        return 0
    async with slow(f"Looking for {zpool}"):
        paths = await lzc.in_thread(NO_ZPOOL, importexport.block_devices)
        candidates = await importexport.search_devices(paths)
    chosen = _choose(zpool, pool, candidates)
    _must_be_importable(chosen, arguments.force)
    # importing the zpool attaches all pools in it
    all_pools = [
        other
        for other in pools
        if other.zpool == zpool and other.guid in (None, chosen.guid)
    ]
    async with slow(f"Importing {zpool}"):
        usable = await _import(chosen, paths, pool, all_pools, arguments.repair)
    await _make_nodes(usable)
    await _report(pool, chosen, usable)
    return 0


async def _make_nodes(
    pools: Sequence[Pool], only_if_missing: bool = False
) -> None:
    """Have the devices of the volumes created.

    :param only_if_missing: do nothing for a pool whose devices all exist
    """
    async with slow("Waiting for devices"):
        for pool in pools:
            # ZFS creates the nodes of a locked pool when its key is loaded
            if not (await keys.state(pool.qubes_root)).locked:
                await importexport.create_nodes(
                    pool.qubes_root, only_if_missing
                )


def _must_have_no_pool(zpool: str, pools: Sequence[Pool]) -> None:
    """Check the name after ``--zpool``.

    :raises Failed: if it is not valid, or qubesd has pools on that zpool
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
            pools=f"the pool{'s' if len(names) > 1 else ''} {', '.join(names)}",
            pool=names[0],
        )


async def _check_imported(pool: Pool) -> None:
    """Check a pool whose zpool is imported.

    :raises Failed: if it is another zpool, or a property is not allowed
    """
    imported = importexport.guid(pool.zpool)
    if pool.guid not in (None, imported):
        raise _other_zpool(pool, "that is imported", str(imported))
    async with slow(f"Checking {pool.name}"):
        await _check(pool)


def _configured_pool(name: str, pools: Sequence[Pool]) -> Pool:
    """Return the pool of qubesd with that name.

    :raises Failed: if there is none
    """
    for pool in pools:
        if pool.name == name:
            return pool
    raise Failed(messages.POOL_UNKNOWN, pool=name)


def _other_zpool(pool: Pool, where: str, other: str) -> Failed:
    """Return the refusal of a zpool with another GUID than the pool's.

    :param where: words for the place of the other zpool
    :param other: its GUID
    """
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

    :param pool: the pool to attach; None: only the name decides
    :param candidates: all zpools on disks that are not imported
    :raises Failed: unless exactly one matches, and has one name only
    """
    named = [item for item in candidates if item.name == zpool]
    if not named:
        raise Failed(messages.ZPOOL_NOWHERE, zpool=zpool)
    guids = ", ".join(sorted(item.guid for item in named))
    recorded = None if pool is None else pool.guid
    matching = [item for item in named if recorded in (None, item.guid)]
    if pool is not None and not matching:
        raise _other_zpool(pool, "on the connected disks", guids)
    if len(matching) > 1:
        if pool is not None and recorded is None:
            raise Failed(
                messages.ZPOOL_SEVERAL,
                zpool=zpool,
                guids=guids,
                pool=pool.name,
            )
        raise Failed(messages.ZPOOLS_OF_A_NAME, zpool=zpool, guids=guids)
    (chosen,) = matching
    names = {item.name for item in candidates if item.guid == chosen.guid}
    if len(names) > 1:
        shown = ", ".join(map(policy.shown, sorted(names)))
        raise Failed(messages.ZPOOL_NAMES, guid=chosen.guid, names=shown)
    return chosen


def _must_be_importable(chosen: ImportableZpool, force: bool) -> None:
    """Refuse a zpool that another system uses, or whose disks are missing.

    :param force: accept a zpool that another system used last
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
    all_pools: Sequence[Pool],
    repair: bool,
) -> list[Pool]:
    """Import a zpool, check it, and export it again if a check fails.

    No zvol in it gets a device before the checks.

    :param all_pools: pools of qubesd that may be in it
    :param repair: leave it imported if a property is not allowed
    :return: those of *all_pools* that exist and may have devices
    :raises Failed: if the zpool is not imported afterwards
    """
    async with importexport.no_new_nodes():
        try:
            altroot = str(RUN_DIR / "mounts" / chosen.name)
            await importexport.import_zpool(
                chosen.guid, paths, altroot, force=chosen.is_used_elsewhere
            )
            await _check_zpool(chosen)
            return await _check_all(pool, all_pools, repair)
        except BaseException as exc:
            # by its present names, because a disk can change the name
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

    :raises Failed: if the name or a property is wrong
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
        name, value, expected = wrong
        raise Failed(
            messages.ZPOOL_PROPERTY,
            zpool=chosen.name,
            property=name,
            value=policy.shown(value),
            wanted=expected,
        )


async def _check_all(
    pool: Pool | None, all_pools: Sequence[Pool], repair: bool
) -> list[Pool]:
    """Return those of *all_pools* that exist and may have devices.

    :param repair: print a property that is not allowed, and continue
    :raises PoolMissing: if *pool* does not exist
    :raises NotAllowed: if a property is not allowed, unless *repair*
    """
    usable = []
    for candidate in all_pools:
        try:
            await _check(candidate)
        except PoolMissing:
            if candidate is pool:
                raise
        except NotAllowed as exc:
            if not repair:
                raise
            say(str(exc))
        else:
            usable.append(candidate)
    return usable


async def _check(pool: Pool) -> None:
    """Check all datasets of a pool against the table of allowed properties.

    :raises PoolMissing: if the pool does not exist
    :raises NotAllowed: if a property is not allowed
    """
    try:
        await policy.check(pool.place)
    except policy.NotThere as exc:
        raise PoolMissing(str(exc)) from exc
    except policy.Refused as exc:
        raise NotAllowed(str(exc)) from exc
    except NoPassphrase as exc:
        raise NotAllowed(messages.reason(exc)) from exc


async def _report(
    pool: Pool | None, chosen: ImportableZpool, usable: Sequence[Pool]
) -> None:
    """Print the result.

    :param usable: the pools in the zpool that have devices now
    """
    if pool is not None and pool.guid is None:
        say(NOT_RECORDED.format(zpool=chosen.name, pool=pool.name))
    if chosen.state != "ONLINE":
        broken = ", ".join(chosen.devices)
        warn(f"{chosen.name} is {chosen.state}: {broken}")
    if pool is not None and pool not in usable:
        say(
            f"{chosen.name} is imported without devices; correct the property,"
            f" then run 'sudo qvm-zfs attach {pool.name}'"
        )
        return
    qubes_roots = tuple(other.qubes_root + "/" for other in usable)
    others = [
        name
        for name in await importexport.volumes(chosen.name)
        if not name.startswith(qubes_roots)
    ]
    if others:
        say(
            (OTHER_VOLUMES if len(others) > 1 else OTHER_VOLUME).format(
                count=len(others),
                zpool=chosen.name,
                example=policy.shown(others[0]),
            )
        )
    name = pool.name if pool is not None else chosen.name
    also = ", ".join(other.name for other in usable if other is not pool)
    say(f"{name} is attached{', together with ' + also if also else ''}")
