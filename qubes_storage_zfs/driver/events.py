# SPDX-License-Identifier: BSD-2-Clause
"""What happens when qubesd tells of a qube; see extension.py for when."""

import asyncio
import logging
from collections.abc import Iterable

import qubes.exc

from ..store import messages
from ..store.options import BadOption
from ..zfs import runtime
from . import discarded, features, prompts, tags
from .admin import Application, Qube, Volume
from .encrypted import encrypted_pools, plain_volumes, pools_of
from .errors import plain, prefixed
from .pool import ZfsPool
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")


OUTSIDE = (
    "qube %s: %s of it is written to the pool %s, which is not encrypted by"
    " the key of its other volumes; see encryption.md in the package's"
    " documentation"
)


# --- when qubesd starts; and a backup loads everything a second time, offline


def loaded(qube: Qube) -> None:
    if not qube.app.vmm.offline_mode:
        tags.update(qube)


def loaded_any(qube: Qube) -> None:
    """dom0 too."""
    if qube.klass == "AdminVM" and not qube.app.vmm.offline_mode:
        prompts.note_application(qube.app)
        for pool in encrypted_pools(qube.app):
            pool.note_ask_domain(qube.app)


# --- the qube that asks for a passphrase


def removing(app: Application, qube: Qube) -> None:
    """:raises QubesVMInUseError: if a pool asks for its passphrase in *qube*"""
    for pool in encrypted_pools(app):
        if pool.ask_domain is not None and pool.ask_domain.matches(qube):
            message = messages.ASKS_IN.format(qube=qube.name, pool=pool.name)
            raise qubes.exc.QubesVMInUseError(qube, plain(message))


# --- keys, from a qube's start to its end


async def starting(qube: Qube) -> None:
    """:raises StoragePoolException: if a key is not to be had"""
    with prefixed(f"Cannot start {qube.name}"):
        for pool in pools_of(qube):
            pool.key.note_qube_starting(qube.name)
            try:
                await pool.unlock(qube.name, qube.app, for_operation=False)
            except BaseException:
                pool.key.note_qube_stopped(qube.name)
                raise


def started(qube: Qube) -> None:
    for pool in pools_of(qube):
        pool.key.note_qube_started(qube.name)


async def start_failed(qube: Qube) -> None:
    """qubesd leaves open what was started before another volume failed, and
    that would keep the key."""
    pools = pools_of(qube)
    if not pools or qube.storage is None or qube.is_running():
        return
    try:
        await qube.storage.stop()
    except qubes.exc.QubesException as exc:
        LOG.warning("qube %s: %s", qube.name, exc)
    stopped(qube)


def stopped(qube: Qube) -> None:
    for pool in pools_of(qube):
        pool.key.note_qube_stopped(qube.name)


# --- what a qube has


def created(qube: Qube) -> None:
    """Its first start waits for nothing that can be made now."""
    for volume in qube.volumes.values():
        if isinstance(volume, ZfsVolume):
            volume.preparation.request()
    for volume in plain_volumes(qube):
        LOG.warning(OUTSIDE, qube.name, volume.name, volume.pool.name)
    tags.update(qube)


def template_changed(qube: Qube) -> None:
    """What was prepared of the former template goes.

    qubesd replaces the volumes of *qube*, and of disposables based on it, in
    handlers of the same event; so this looks when all of them have run.
    """
    if _is_in_loop() and not qube.app.vmm.offline_mode:
        asyncio.get_running_loop().call_soon(_follow_template, qube)


def _is_in_loop() -> bool:
    """Whether an event loop runs; else this is not qubesd."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _follow_template(qube: Qube) -> None:
    for follower in (qube, *getattr(qube, "dispvms", ())):
        for volume in follower.volumes.values():
            if isinstance(volume, ZfsVolume) and volume.source is not None:
                volume.preparation.follow_source()
    _collect_discarded(qube.app)


def removed(app: Application, qube: Qube) -> None:
    """What was prepared for *qube* in other pools goes; its own volumes are
    removed by qubesd.

    A disposable that goes when it stops never had another template.
    """
    if not getattr(qube, "auto_cleanup", False):
        volumes = getattr(qube, "volumes", {}).values()
        _collect_discarded(app, [(v.pool.name, v.vid) for v in volumes])


def _collect_discarded(
    app: Application, besides: Iterable[discarded.Key] = ()
) -> None:
    if app.vmm.offline_mode or not _is_in_loop():
        return
    for pool in app.pools.values():
        if isinstance(pool, ZfsPool):
            task = asyncio.create_task(
                discarded.collect(pool, app, besides, wait=True),
                name=f"collect in {pool.name}",
            )
            runtime.of(runtime.Tasks).keep(task)


def tagged(qube: Qube) -> None:
    tags.update(qube)


def check_feature(qube: Qube, feature: str, value: str) -> None:
    """:raises QubesValueError: if it is none that a qube can have"""
    volumes = getattr(qube, "volumes", None) or None
    if getattr(qube, "klass", None) == "DispVM":
        # they are copied from its template, where they were checked
        volumes = None
    try:
        features.check(feature, value, volumes)
        if volumes and feature == features.PREFIX + features.RESET:
            for volume, revision in features.parse_reset(value).items():
                _check_revision(volumes[volume], revision)
    except BadOption as exc:
        title = f"Cannot set the feature {feature} of {qube.name}"
        raise qubes.exc.QubesValueError(plain(f"{title}: {exc}")) from exc


def _check_revision(volume: Volume, revision: str) -> None:
    """A qube that is a clone is given its features before its content."""
    if revision == features.BLANK or not isinstance(volume, ZfsVolume):
        return
    revisions = volume.view.committed_ids()
    if revisions and revision not in revisions:
        raise BadOption(
            f"{volume.name} has no revision {revision}; it has"
            f" {', '.join(revisions)}, the last of which is the state it was left"
            " in"
        )
