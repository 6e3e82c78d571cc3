"""What happens when qubesd tells of a qube; see extension.py for when."""

import logging
from typing import Any

import qubes.exc

from . import ask, sentences, tags, tuning
from .encrypted import encrypted_pools, plain_volumes, pools_of
from .errors import plain, told
from .options import BadOption
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")

OUTSIDE = (
    "qube %s: %s of it is written to the pool %s, which is not encrypted by"
    " the key of its other volumes; see encryption.md in the package's"
    " documentation"
)


# --- when qubesd starts; and a backup loads everything a second time, offline


def loaded(qube: Any) -> None:
    if not qube.app.vmm.offline_mode:
        tags.keep_true(qube)


def loaded_any(qube: Any) -> None:
    """dom0 too."""
    if qube.klass == "AdminVM" and not qube.app.vmm.offline_mode:
        ask.remember(qube.app)
        for pool in encrypted_pools(qube.app):
            pool.note_ask_domain(qube.app)


# --- the qube that asks for a passphrase


def removing(app: Any, qube: Any) -> None:
    """:raises QubesVMInUseError: if a pool asks for its passphrase in *qube*"""
    for pool in encrypted_pools(app):
        if pool.ask_in is not None and pool.ask_in.matches(qube):
            why = sentences.ASKS_IN.format(qube=qube.name, pool=pool.name)
            raise qubes.exc.QubesVMInUseError(qube, plain(why))


# --- keys, from a qube's start to its end


async def starting(qube: Any) -> None:
    """:raises StoragePoolException: if a key is not to be had"""
    with told(f"Cannot start {qube.name}"):
        for pool in pools_of(qube):
            pool.key.expect(qube.name)
            try:
                await pool.unlock(qube.name, qube.app, verb=False)
            except BaseException:
                pool.key.left(qube.name)
                raise


def started(qube: Any) -> None:
    for pool in pools_of(qube):
        pool.key.arrived(qube.name)


async def start_failed(qube: Any) -> None:
    """qubesd leaves open what was started before another volume failed, and
    that would keep the key."""
    pools = pools_of(qube)
    if not pools or qube.is_running():
        return
    try:
        await qube.storage.stop()
    except qubes.exc.QubesException as exc:
        LOG.warning("qube %s: %s", qube.name, exc)
    stopped(qube)


def stopped(qube: Any) -> None:
    for pool in pools_of(qube):
        pool.key.left(qube.name)


# --- what a qube has


def created(qube: Any) -> None:
    """Its first start waits for nothing that can be made now."""
    for volume in qube.volumes.values():
        if isinstance(volume, ZfsVolume):
            volume.prepare()
    for volume in plain_volumes(qube):
        LOG.warning(OUTSIDE, qube.name, volume.name, volume.pool.name)
    tags.keep_true(qube)


def tagged(qube: Any) -> None:
    tags.keep_true(qube)


def feature_given(qube: Any, feature: str, value: str) -> None:
    """:raises QubesValueError: if it is none that a qube can have"""
    volumes = getattr(qube, "volumes", None) or None
    if getattr(qube, "klass", None) == "DispVM":
        # they are copied from its template, where they were checked
        volumes = None
    try:
        tuning.check(feature, value, volumes)
        if volumes and feature == tuning.PREFIX + tuning.RESET:
            for volume, revision in tuning.parse_reset(value).items():
                _check_revision(volumes[volume], revision)
    except BadOption as exc:
        what = f"Cannot set the feature {feature} of {qube.name}"
        raise qubes.exc.QubesValueError(plain(f"{what}: {exc}")) from exc


def _check_revision(volume: Any, revision: str) -> None:
    """A qube that is a clone is given its features before its content."""
    if revision == tuning.BLANK or not isinstance(volume, ZfsVolume):
        return
    there = volume.committed_ids()
    if there and revision not in there:
        raise BadOption(
            f"{volume.name} has no revision {revision}; it has"
            f" {', '.join(there)}, the last of which is the state it was left"
            " in"
        )
