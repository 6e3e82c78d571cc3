# SPDX-License-Identifier: BSD-2-Clause
"""Destroy disposable volumes that no qube has any more.

A disposable volume is prepared for its next start.  If its qube gets another
template, the volume may move to another pool, or get another name.  No other
code would destroy the volume that was prepared before.  So this module compares
the pool with qubes.xml, and destroys disposable volumes that no qube has.

It uses only the set of qubes that qubesd works with.  A second set, which
qubesd loads for a backup, can differ.
"""

import logging
import time
from collections.abc import Iterable

from ..store import naming, pool_programs
from ..store.generations import Generations
from ..zfs.errors import NoModule, PoolAbsent, ZfsError
from .admin import Application
from .interface import Pool

LOG = logging.getLogger("qubes.storage.zfs")

#: classes of domains whose "storage" is always None (BaseVM.__init__())
_WITHOUT_VOLUMES = frozenset(("AdminVM", "RemoteVM"))

#: a volume: name of its pool, and its vid
Key = tuple[str, str]


def _is_working_set(app: Application | None) -> bool:
    """Return whether *app* is the set of qubes that qubesd works with."""
    vmm = getattr(app, "vmm", None)
    return vmm is not None and not vmm.offline_mode


def volumes_of_qubes(app: Application | None) -> set[Key] | None:
    """Return the volumes of all qubes.

    :return: None if *app* is not the set of qubes that qubesd works with, or
        if qubesd has not loaded the volumes of all qubes yet
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
    """Compare *pool* with *app* once, at the first use of the pool.

    If *app* is not complete, a later use of the pool compares.
    """
    if volumes_of_qubes(app) is not None:
        pool.store.is_compared = True
        await collect(pool, app)


async def collect(
    pool: Pool,
    app: Application | None,
    besides: Iterable[Key] = (),
    wait: bool = False,
) -> None:
    """Destroy the disposable volumes in *pool* that no qube of *app* has.

    While a qube is being created, no volume is destroyed.  The next use of the
    pool collects then.

    :param besides: volumes that are not destroyed either
    :param wait: wait until a volume is not being prepared.  Not allowed within
        an operation, because the preparation may wait for that operation
    """
    try:
        marks = await pool_programs.discarded(
            pool.container, pool.qubes_root, pool.name
        )
        for vid, mark in marks.items():
            if not naming.is_vid(vid):
                # another program created the dataset
                continue
            key = (pool.name, vid)
            # checked for each volume, because a qube may have been created
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
        LOG.warning(
            "pool %s: cannot collect volumes that no qube has: %s",
            pool.name,
            exc,
        )


def _is_unused(
    pool: Pool, app: Application | None, key: Key, besides: Iterable[Key]
) -> bool:
    """Return whether certainly no qube has the volume *key*.

    While a qube is being created, nothing is certain.  The next use of *pool*
    compares again then.
    """
    used = volumes_of_qubes(app)
    if used is None and _is_working_set(app):
        pool.store.is_compared = False
    return used is not None and key not in used.union(besides)


async def _destroy(pool: Pool, vid: str, mark: str) -> None:
    """Destroy a disposable volume, unless a process works on it.

    :param mark: the holder mark of its current generation
    """
    where = naming.volume_name(pool.qubes_root, vid)
    if pool.store.may_collect(where, mark):
        generations = Generations(where, pool.store, pool.zpool)
        started = time.monotonic()
        await generations.remove(only_disposable=True)
        LOG.info(
            "%s in pool %s: destroyed, because no qube has the volume (%.2f s)",
            vid,
            pool.name,
            time.monotonic() - started,
        )
