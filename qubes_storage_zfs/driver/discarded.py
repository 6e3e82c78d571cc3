# SPDX-License-Identifier: BSD-2-Clause
"""Discarded content that no qube has any more, and that must not stay.

A volume whose content is discarded is prepared for its next start.  If its
qube gets another template, the volume may be in another pool from then on, or
have another name there, and nothing else would look at the prepared one again.
So what qubes.xml says decides: a volume whose content is discarded and that no
qube has is destroyed.

Only the set of qubes that qubesd works with is asked.  A second set, which
qubesd makes for a backup, may say something else.
"""

import logging
from collections.abc import Iterable

from ..store import naming, pool_programs
from ..store.generations import Generations
from ..zfs.errors import NoModule, PoolAbsent, ZfsError
from .admin import Application
from .interface import Pool

LOG = logging.getLogger("qubes.storage.zfs")

#: classes of domains whose "storage" is None for ever (BaseVM.__init__())
_WITHOUT_VOLUMES = frozenset(("AdminVM", "RemoteVM"))

#: a volume: the name of its pool, and its vid
Key = tuple[str, str]


def _is_working_set(app: Application | None) -> bool:
    """Return whether *app* is the set of qubes that qubesd works with."""
    vmm = getattr(app, "vmm", None)
    return vmm is not None and not vmm.offline_mode


def volumes_of_qubes(app: Application | None) -> set[Key] | None:
    """Return all volumes of all qubes.

    :return: None if *app* is not the set of qubes that qubesd works with, or
        has not loaded all of them
    """
    if app is None or not _is_working_set(app):
        return None
    used = set()
    for qube in app.domains:
        if qube.klass in _WITHOUT_VOLUMES or not hasattr(qube, "storage"):
            continue
        if qube.storage is None:
            return None
        for volume in qube.volumes.values():
            used.add((volume.pool.name, volume.vid))
    return used


async def collect_once(pool: Pool, app: Application | None) -> None:
    """Do it when a pool is first used, by the first who may decide."""
    if volumes_of_qubes(app) is not None:
        pool.store.is_compared = True
        await collect(pool, app)


async def collect(
    pool: Pool,
    app: Application | None,
    besides: Iterable[Key] = (),
    wait: bool = False,
) -> None:
    """Destroy the volumes in *pool* whose content is discarded and that no
    qube of *app* has.

    While a qube is being created, nothing is destroyed; the next use of the
    pool collects then.

    :param besides: volumes that are left alone, too
    :param wait: for what is being prepared; not within an operation, which
        that may wait for
    """
    try:
        marks = await pool_programs.discarded(
            pool.container, pool.qubes_root, pool.name
        )
        for vid, mark in marks.items():
            if not naming.is_vid(vid):
                # of a dataset that is not this driver's
                continue
            key = (pool.name, vid)
            # asked each time, as qubes may have come meanwhile
            if not _is_unused(pool, app, key, besides):
                continue
            if wait:
                await pool.wait_until_idle(vid)
                if not _is_unused(pool, app, key, besides):
                    continue
            await _destroy(pool, vid, mark)
    except (NoModule, PoolAbsent):
        pass
    except (ZfsError, naming.BadName) as exc:
        LOG.warning("pool %s: discarded volumes may stay: %s", pool.name, exc)


def _is_unused(
    pool: Pool, app: Application | None, key: Key, besides: Iterable[Key]
) -> bool:
    """Return whether it is certain that no qube has the volume.

    If a qube is being created, the next use of *pool* asks again.
    """
    used = volumes_of_qubes(app)
    if used is None and _is_working_set(app):
        pool.store.is_compared = False
    return used is not None and key not in used.union(besides)


async def _destroy(pool: Pool, vid: str, mark: str) -> None:
    where = naming.volume_name(pool.qubes_root, vid)
    if pool.store.may_collect(where, mark):
        generations = Generations(where, pool.store, pool.zpool)
        await generations.forget(discarded=True)
        LOG.info("%s in %s is destroyed: no qube has it", vid, pool.name)
