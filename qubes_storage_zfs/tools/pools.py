# SPDX-License-Identifier: BSD-2-Clause
"""Find pools: those that qubesd has, and those that marks on disks name.

qubes.xml decides which dataset the name of a pool means.  A mark on a disk is
only a claim, because another disk can have the same mark.  So a mark counts only
if no configured pool has the name, and no other dataset has the same mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..store import messages, naming, policy, pool_programs
from ..store.pool_programs import ClaimedDataset
from ..zfs import commands, importexport, keys
from ..zfs.errors import SilentZpool, ZfsError
from ..zfs.text import SHOWN, printable
from .common import (
    DRIVERS,
    ENCRYPTED,
    App,
    Failed,
    Pool,
    configured,
    qubesd,
)


def claimed_pool(mark: ClaimedDataset) -> Pool:
    """Return the pool that a mark names and that qubesd does not have."""
    has_our_path = mark.dataset.endswith(f"/encryption/{mark.claimed_by}")
    driver = ENCRYPTED if has_our_path and mark.is_root else DRIVERS[0]
    return Pool(mark.claimed_by, driver, mark.dataset, is_configured=False)


@dataclass(frozen=True)
class Survey:
    """The pools and marks at one time.

    :ivar pools: the configured pools, then those that only marks name, both
        sorted by name
    :ivar marks: the marks in all imported zpools
    :ivar unread: a message for each zpool whose marks could not be read
    """

    pools: Sequence[Pool]
    marks: Sequence[ClaimedDataset]
    unread: Sequence[str]

    def named(self, name: str) -> Pool:
        """Return the pool that *name* means.

        :raises Failed: if there is none, if no configured pool has the name
            and several datasets are marked with it, or if the zpool has
            another GUID
        """
        claims = [pool for pool in self.pools if pool.name == name]
        chosen = [pool for pool in claims if pool.is_configured] or claims
        if not chosen:
            raise Failed(messages.NO_POOL, pool=name)
        if len(chosen) > 1:
            datasets = " and ".join(
                printable(pool.dataset, SHOWN) for pool in chosen
            )
            raise Failed(messages.SEVERAL_CLAIMS, pool=name, datasets=datasets)
        check_zpool(chosen[0])
        return chosen[0]

    def other_claim(self, pool: Pool) -> str | None:
        """Return the other pool that the mark on *pool*'s dataset names, if any."""
        for mark in self.marks:
            if mark.dataset == pool.dataset and mark.claimed_by != pool.name:
                return mark.claimed_by
        return None

    def unconfigured_roots(self) -> list[ClaimedDataset]:
        """Return the marked encryption roots that no pool of qubesd uses."""
        places = {pool.dataset for pool in self.pools if pool.is_configured}
        return [
            mark
            for mark in self.marks
            if mark.is_root and mark.dataset not in places
        ]


async def survey(app: App) -> Survey:
    """Return all pools.

    :param app: the result of qubesd()
    :raises Failed: if qubes.xml is needed and cannot be read
    """
    return await survey_disks(configured(app))


async def survey_disks(configured_pools: Sequence[Pool]) -> Survey:
    """Return the configured pools and those that only marks name."""
    marks: list[ClaimedDataset] = []
    unread = []
    for zpool in importexport.imported():
        if not is_supported(zpool):
            continue
        try:
            marks += await _marks(zpool)
        except ZfsError as exc:
            reason = messages.reason(exc)
            unread.append(f"the zpool {zpool} cannot be read: {reason}")
    places = {pool.dataset for pool in configured_pools}
    claimed = [
        claimed_pool(mark) for mark in marks if mark.dataset not in places
    ]
    pools = [
        *sorted(configured_pools, key=_order),
        *sorted(claimed, key=_order),
    ]
    return Survey(pools, marks, unread)


def _order(pool: Pool) -> tuple[str, str]:
    """Return the key to sort pools by."""
    return pool.name, pool.dataset


async def _marks(zpool: str) -> list[ClaimedDataset]:
    """Return the marks in a zpool.

    :raises ZfsError: if ZFS fails, or does not respond
    """
    if not await commands.responds(zpool):
        raise SilentZpool(zpool)
    return await pool_programs.marks(zpool)


def is_supported(dataset: str) -> bool:
    """Return whether this driver supports the name of a dataset."""
    try:
        naming.dataset_name(dataset)
    except naming.BadName:
        return False
    return True


def check_zpool(pool: Pool) -> None:
    """Check that the imported zpool is the pool's, not one of the same name.

    :raises Failed: if it has another GUID than qubes.xml records
    """
    try:
        policy.check_zpool(pool.place)
    except policy.NotThere as exc:
        raise Failed(str(exc)) from exc


async def encrypted_pool(name: str, *, secret: bool = True) -> Pool:
    """Return the encrypted pool that *name* means; its dataset exists.

    :param secret: the caller asks for a passphrase, so refuse a dataset that is
        marked as another pool's
    :raises Failed: if there is no such pool
    """
    pools = await survey(qubesd())
    pool = pools.named(name)
    if not pool.is_encrypted:
        raise Failed(messages.NOT_ENCRYPTED, pool=name)
    claim = pools.other_claim(pool)
    if secret and claim is not None:
        raise Failed(
            messages.CONTAINER_CLAIMED,
            dataset=pool.dataset,
            owner=printable(claim, SHOWN),
            property=naming.CLAIM,
        )
    if not (await keys.state(pool.dataset)).exists:
        raise Failed(messages.DATASET_ABSENT, dataset=pool.dataset)
    return pool


async def must_be_allowed(pool: Pool) -> None:
    """Check the datasets before the key is loaded, because that creates devices.

    :raises Failed: if a property is not allowed
    :raises ZfsError: if ZFS fails, or the key is not a passphrase
    """
    try:
        await policy.check(pool.place, must_be_claimed=False)
    except policy.Refused as exc:
        raise Failed(str(exc)) from exc
