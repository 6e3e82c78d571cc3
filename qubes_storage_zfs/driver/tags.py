# SPDX-License-Identifier: BSD-2-Clause
"""A tag for each pool that saves volumes of a qube, for qrexec policies.

This package alone decides which tags with PREFIX a qube has.  qubesd copies the
tags of a qube to its clone, to its disposables, and into a backup, and the copy
can be wrong.

A policy may allow actions by such a tag.  It must not deny actions by such a
tag, because no tags are set while this package cannot be imported.
"""

import logging

from .admin import Qube
from .pool import ZfsPool

LOG = logging.getLogger("qubes.storage.zfs")

PREFIX = "zfs-pool-"


def _needed(qube: Qube) -> set[str]:
    """Return the tags that a qube must have.

    A pool with a dot in its name has no tag, because tags cannot contain dots.
    With the dot replaced, two pools could have the same tag.
    """
    return {
        PREFIX + volume.pool.name
        for volume in qube.volumes.values()
        if volume.save_on_stop
        and isinstance(volume.pool, ZfsPool)
        and volume.pool.tag_qubes
        and "." not in volume.pool.name
    }


def update(qube: Qube) -> None:
    """Add missing tags, and remove wrong ones.

    While qubesd creates a qube, the qube has no storage, and nothing is done.
    """
    if getattr(qube, "storage", None) is None:
        return
    needed = _needed(qube)
    for tag in sorted(qube.tags):
        if tag.startswith(PREFIX) and tag not in needed:
            LOG.info("qube %s: the tag %s is removed", qube.name, tag)
            qube.tags.discard(tag)
    for tag in sorted(needed):
        qube.tags.add(tag)
