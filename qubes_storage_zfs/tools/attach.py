"""Import the zpool of a pool whose disk was away; nothing is forced."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from .. import layout, sentences
from ..key import RUN_DIR
from ..zfs import core, keys, removable
from ..zfs.errors import CommandFailed, NoModule
from ..zfs.removable import Found, Value
from .common import ENCRYPTED, Failed, Pool, configured, qubesd, slow

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL")


async def run(given: argparse.Namespace) -> int:
    pools = configured(qubesd())
    pool = _named(given.pool, pools)
    zpool = pool.zpool
    if core.module_version() is None:
        raise NoModule(zpool, call="import")
    imported = removable.guid(zpool)
    if imported is not None:
        if pool.guid not in (None, imported):
            raise Failed(_is_another(pool, "that is imported", imported))
        async with slow(f"Looking at {pool.name}"):
            await _check(pool)
        print(f"{pool.name} is attached already.")
        return 0
    async with slow(f"Looking for {zpool}"):
        paths = await core.in_thread(removable.devices)
        found = [
            each
            for each in await removable.on_devices(paths)
            if each.name == zpool
        ]
    chosen = _choose(pool, found)
    # what else of ours is in it is there, too
    mates = [
        each
        for each in pools
        if each.zpool == zpool and each.guid in (None, chosen.guid)
    ]
    async with slow(f"Importing {zpool}"):
        mates = await _take_in(chosen, paths, pool, mates)
    async with slow("Waiting for its devices"):
        for each in mates:
            # what is locked gets them when its key is loaded
            if not (await keys.state(each.home)).locked:
                await removable.make_nodes(each.home)
    await _tell(pool, chosen, mates)
    return 0


def _named(name: str, pools: Sequence[Pool]) -> Pool:
    for pool in pools:
        if pool.name == name:
            return pool
    raise Failed(
        f"qubesd has no ZFS pool {name}; 'qvm-pool list' lists its pools"
    )


def _is_another(pool: Pool, where: str, other: str) -> str:
    return sentences.ZPOOL_IS_ANOTHER.format(
        pool=pool.name,
        zpool=pool.zpool,
        guid=pool.guid,
        where=where,
        other=other,
    )


def _choose(pool: Pool, found: Sequence[Found]) -> Found:
    """:raises Failed: unless the pool's zpool is there and can be imported"""
    zpool = pool.zpool
    if not found:
        raise Failed(sentences.ZPOOL_NOWHERE.format(zpool=zpool))
    guids = ", ".join(sorted(each.guid for each in found))
    right = [each for each in found if pool.guid in (None, each.guid)]
    if not right:
        raise Failed(_is_another(pool, "on the disks that are here", guids))
    if len(right) > 1:
        raise Failed(
            sentences.ZPOOL_SEVERAL.format(
                zpool=zpool, guids=guids, pool=pool.name
            )
        )
    (chosen,) = right
    if chosen.elsewhere:
        raise Failed(sentences.ZPOOL_ELSEWHERE.format(zpool=zpool))
    if chosen.state not in ("ONLINE", "DEGRADED"):
        raise Failed(
            sentences.ZPOOL_BROKEN.format(
                zpool=zpool,
                status=chosen.status or chosen.state,
                devices=", ".join(chosen.devices) or "no device is missing",
            )
        )
    return chosen


async def _take_in(
    chosen: Found, paths: Sequence[str], pool: Pool, mates: Sequence[Pool]
) -> list[Pool]:
    """Import, and export again what is not as it must be.

    No zvol of it has a device before it was looked at.

    :return: those of *mates* that are there
    :raises Failed: if it was not imported
    """
    zpool, there = chosen.name, []
    async with removable.no_new_nodes():
        try:
            altroot = RUN_DIR / "mounts" / zpool
            await removable.take_in(chosen.guid, paths, str(altroot))
            if removable.guid(zpool) != chosen.guid:
                raise Failed(f"{zpool} is not imported by that name")
            for each in mates:
                try:
                    await _check(each)
                except Gone:
                    if each is pool:
                        raise
                else:
                    there.append(each)
        except BaseException as exc:
            if removable.guid(zpool) == chosen.guid:
                await removable.give_back(zpool)
            if isinstance(exc, CommandFailed):
                if removable.had_elsewhere(exc.output):
                    why = sentences.ZPOOL_ELSEWHERE.format(zpool=zpool)
                    raise Failed(why) from exc
            raise
    return there


async def _check(pool: Pool) -> None:
    """See whether a pool is as it was when it went away.

    :raises Gone: if it is not there
    :raises Failed: if dom0 is to treat its volumes otherwise
    """
    try:
        found = await removable.properties(
            pool.dataset, layout.OWNER, layout.UDEV_FLAG
        )
    except CommandFailed as exc:
        why = sentences.CONTAINER_MISSING.format(dataset=pool.dataset)
        raise Gone(why) from exc
    owner = found[pool.dataset][layout.OWNER]
    if not owner.local:
        why = sentences.unmarked(pool.name, pool.dataset, False)
        raise Gone(why)
    if owner.value != pool.name:
        raise Gone(
            sentences.CONTAINER_CLAIMED.format(
                dataset=pool.dataset,
                owner=owner.value,
                property=layout.OWNER,
            )
        )
    if pool.home not in found:
        why = sentences.CONTAINER_MISSING.format(dataset=pool.home)
        raise Gone(why)
    for dataset, values in found.items():
        if f"{dataset}/".startswith(f"{pool.home}/"):
            for name, value, wanted in _changed(pool, dataset, values):
                raise Failed(
                    sentences.DISK_CHANGED.format(
                        dataset=dataset,
                        property=name,
                        value=value,
                        wanted=wanted,
                    )
                )


def _changed(
    pool: Pool, dataset: str, values: dict[str, Value]
) -> Iterator[tuple[str, str, str]]:
    """Properties, their values, and what these must be."""
    wanted = dict(layout.SAFE)
    if pool.driver == ENCRYPTED:
        wanted["encryptionroot"] = pool.dataset
        if dataset == pool.dataset:
            wanted["keylocation"] = "prompt"
    for name, value in wanted.items():
        if values[name].value != value:
            yield name, values[name].value, value


async def _tell(pool: Pool, chosen: Found, mates: Sequence[Pool]) -> None:
    if pool.guid is None:
        print(NOT_NOTED.format(zpool=pool.zpool, pool=pool.name))
    if chosen.state != "ONLINE":
        broken = ", ".join(chosen.devices)
        print(f"{pool.zpool} is {chosen.state}: {broken}", file=sys.stderr)
    homes = tuple(each.home + "/" for each in mates)
    others = [
        name
        for name in await removable.volumes(pool.zpool)
        if not name.startswith(homes)
    ]
    if others:
        print(
            OTHERS.format(
                count=len(others), zpool=pool.zpool, example=others[0]
            )
        )
    also = ", ".join(each.name for each in mates if each.name != pool.name)
    print(f"{pool.name} is attached{', and with it ' + also if also else ''}.")
