# SPDX-License-Identifier: BSD-2-Clause
"""The pools: those that qubesd has, and those that disks claim.

qubes.xml decides which dataset a pool's name means.  A mark on a disk is a
claim: another disk can carry the same one.  So a mark counts only where no
configured pool has the name, and only if no other dataset has the same mark.
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
    """Return the pool that a dataset claims to be of; no configuration
    confirms it."""
    is_ours = mark.dataset.endswith(f"/encryption/{mark.claimed_by}")
    driver = ENCRYPTED if is_ours and mark.is_root else DRIVERS[0]
    return Pool(mark.claimed_by, driver, mark.dataset, is_configured=False)


@dataclass(frozen=True)
class Survey:
    """The pools and marks at one time.

    :ivar pools: the configured ones, then those that only disks claim; each
        sorted by name
    :ivar marks: of all imported zpools
    :ivar unread: sentences on the zpools whose marks could not be read
    """

    pools: Sequence[Pool]
    marks: Sequence[ClaimedDataset]
    unread: Sequence[str]

    def named(self, name: str) -> Pool:
        """Return the pool that *name* means.

        :raises Failed: if there is none, if several datasets claim the name
            and no configured pool has it, or if its zpool is another one
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
        """Return the name on the dataset of *pool* if it is another pool's."""
        for mark in self.marks:
            if mark.dataset == pool.dataset and mark.claimed_by != pool.name:
                return mark.claimed_by
        return None

    def strange_roots(self) -> list[ClaimedDataset]:
        """Return the marked encryption roots of pools that qubesd lacks."""
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


async def survey_disks(ours: Sequence[Pool]) -> Survey:
    """Return *ours*, which are configured, and the pools that disks claim."""
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
    places = {pool.dataset for pool in ours}
    claimed = [
        claimed_pool(mark) for mark in marks if mark.dataset not in places
    ]
    pools = [*sorted(ours, key=_order), *sorted(claimed, key=_order)]
    return Survey(pools, marks, unread)


def _order(pool: Pool) -> tuple[str, str]:
    return pool.name, pool.dataset


async def _marks(zpool: str) -> list[ClaimedDataset]:
    """Return the marks in a zpool.

    :raises ZfsError: if ZFS cannot be asked, or does not answer
    """
    if not await commands.responds(zpool):
        raise SilentZpool(zpool)
    return await pool_programs.marks(zpool)


def is_supported(dataset: str) -> bool:
    """Return whether this driver can have a dataset of that name."""
    try:
        naming.dataset_name(dataset)
    except naming.BadName:
        return False
    return True


def check_zpool(pool: Pool) -> None:
    """Refuse a zpool that only has the right name.

    :raises Failed: if the imported zpool has another GUID than the pool's
    """
    try:
        policy.check_zpool(pool.place)
    except policy.NotThere as exc:
        raise Failed(str(exc)) from exc


async def encrypted_pool(name: str, *, secret: bool = True) -> Pool:
    """Return the encrypted pool that *name* means, whose dataset exists.

    :param secret: a passphrase will be asked for, so the dataset must not be
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
    """Check what is on disk before the key is loaded, which makes devices.

    :raises Failed: if a property is not allowed
    :raises ZfsError: if ZFS cannot be asked, or no passphrase unlocks *pool*
    """
    try:
        await policy.check(pool.place, must_be_claimed=False)
    except policy.Refused as exc:
        raise Failed(str(exc)) from exc
