# SPDX-License-Identifier: BSD-2-Clause
"""Find the encrypted pools of a qube, and its volumes outside of them."""

from .admin import Application, Qube, Volume
from .encrypted import ZfsEncryptedPool


def encrypted_pools(app: Application) -> list[ZfsEncryptedPool]:
    """Return the encrypted pools."""
    return [
        pool
        for pool in app.pools.values()
        if isinstance(pool, ZfsEncryptedPool)
    ]


def pools_of(qube: Qube) -> list[ZfsEncryptedPool]:
    """Return the encrypted pools of a qube's volumes and their sources."""
    pools: dict[str, ZfsEncryptedPool] = {}
    for volume in getattr(qube, "volumes", {}).values():
        above: Volume | None = volume
        while above is not None:
            if isinstance(above.pool, ZfsEncryptedPool):
                pools[above.pool.name] = above.pool
            above = getattr(above, "source", None)
    return list(pools.values())


def plain_volumes(qube: Qube) -> list[Volume]:
    """Return volumes of a qube to which it writes outside encrypted pools.

    :return: no volumes if no volume of the qube is in an encrypted pool
    """
    if not any(
        isinstance(volume.pool, ZfsEncryptedPool)
        for volume in qube.volumes.values()
    ):
        return []
    return [
        volume
        for volume in qube.volumes.values()
        if volume.rw
        and not isinstance(volume.pool, ZfsEncryptedPool)
        and not getattr(volume, "ephemeral", False)
    ]
