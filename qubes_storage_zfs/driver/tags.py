# SPDX-License-Identifier: BSD-2-Clause
"""A tag for each pool that a qube keeps something in, for qrexec's policy.

What begins with PREFIX is kept true here, whoever sets it: a clone, a restored
backup and a disposable are given the tags of what they were made from.  A rule
that allows something by such a tag holds; one that denies by it does not, if
this package is broken.
"""

import logging

from .admin import Qube
from .pool import ZfsPool

LOG = logging.getLogger("qubes.storage.zfs")

PREFIX = "zfs-pool-"


def _needed(qube: Qube) -> set[str]:
    """A tag cannot have the dots that a pool's name can; one that stood for
    several pools would be true of none, so such pools have no tag."""
    return {
        PREFIX + volume.pool.name
        for volume in qube.volumes.values()
        if volume.save_on_stop
        and isinstance(volume.pool, ZfsPool)
        and volume.pool.tag_qubes
        and "." not in volume.pool.name
    }


def update(qube: Qube) -> None:
    """Add and drop what is needed; a qube being made has no storage yet."""
    if getattr(qube, "storage", None) is None:
        return
    needed = _needed(qube)
    for tag in sorted(qube.tags):
        if tag.startswith(PREFIX) and tag not in needed:
            LOG.info("qube %s: tag %s is dropped", qube.name, tag)
            qube.tags.discard(tag)
    for tag in sorted(needed):
        qube.tags.add(tag)
