# SPDX-License-Identifier: BSD-2-Clause
"""Actions on qubesd's events about qubes.

extension.py registers the handlers, and has the name of the event of each.
"""

import asyncio
import logging
from collections.abc import Iterable

import qubes.exc

from ..store import messages
from ..store.options import BadOption
from ..zfs import runtime
from . import discarded, features, prompts, tags
from .admin import Application, Qube, Volume
from .encrypted_qubes import encrypted_pools, plain_volumes, pools_of
from .errors import plain, prefixed
from .pool import ZfsPool
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")


OUTSIDE = (
    "qube %s: its volume %s is written to the pool %s, which the key of its"
    " other volumes does not encrypt; see encryption.md in the package's"
    " documentation"
)


# --- qubesd has started, or has loaded a second set of qubes for a backup


def loaded(qube: Qube) -> None:
    """Update the tags of a qube that qubesd has loaded."""
    if not qube.app.vmm.offline_mode:
        tags.update(qube)


def loaded_any(qube: Qube) -> None:
    """Note the application object and the ask domains, once for all domains.

    The event comes for each domain, and dom0 is the one of class AdminVM.
    """
    if qube.klass == "AdminVM" and not qube.app.vmm.offline_mode:
        prompts.note_application(qube.app)
        for pool in encrypted_pools(qube.app):
            pool.note_ask_domain(qube.app)


# --- the qube that shows the prompt for a passphrase


def removing(app: Application, qube: Qube) -> None:
    """Refuse the removal of a qube that shows the prompt of a pool.

    :raises QubesVMInUseError: if ask_password_domain of a pool names *qube*
    """
    for pool in encrypted_pools(app):
        if pool.ask_domain is not None and pool.ask_domain.matches(qube):
            message = messages.ASKS_IN.format(qube=qube.name, pool=pool.name)
            raise qubes.exc.QubesVMInUseError(qube, plain(message))


# --- keys, from the start of a qube to its stop


async def starting(qube: Qube) -> None:
    """Load the keys that the volumes of *qube* need.

    :raises StoragePoolException: if a key cannot be loaded
    """
    with prefixed(f"Cannot start {qube.name}"):
        for pool in pools_of(qube):
            pool.key.note_qube_starting(qube.name)
            try:
                await pool.unlock(qube.name, qube.app, for_operation=False)
            except BaseException:
                pool.key.note_qube_stopped(qube.name)
                raise


def started(qube: Qube) -> None:
    """Note that *qube* has opened its volumes."""
    for pool in pools_of(qube):
        pool.key.note_qube_started(qube.name)


async def start_failed(qube: Qube) -> None:
    """Stop the volumes of a qube whose start has failed.

    qubesd does not stop the volumes that it started before the failure.  They
    would stay open, and their keys would stay loaded.
    """
    pools = pools_of(qube)
    if not pools or qube.storage is None or qube.is_running():
        return
    try:
        await qube.storage.stop()
    except qubes.exc.QubesException as exc:
        LOG.warning(
            "qube %s: cannot stop its volumes after a failed start: %s",
            qube.name,
            exc,
        )
    stopped(qube)


def stopped(qube: Qube) -> None:
    """Note that *qube* has closed its volumes, or does not open them."""
    for pool in pools_of(qube):
        pool.key.note_qube_stopped(qube.name)


# --- volumes, tags and features of a qube


def created(qube: Qube) -> None:
    """Prepare the first start of a new qube.

    Log a warning if some of its writable volumes are not encrypted while others
    are.
    """
    for volume in qube.volumes.values():
        if isinstance(volume, ZfsVolume):
            volume.preparation.request()
    for volume in plain_volumes(qube):
        LOG.warning(OUTSIDE, qube.name, volume.name, volume.pool.name)
    tags.update(qube)


def template_changed(qube: Qube) -> None:
    """Destroy what was prepared from the former template of *qube*.

    qubesd replaces the volumes of *qube*, and of disposables based on it, in
    handlers of the same event.  So the action runs after all these handlers.
    """
    if _is_in_loop() and not qube.app.vmm.offline_mode:
        asyncio.get_running_loop().call_soon(_follow_template, qube)


def _is_in_loop() -> bool:
    """Return whether an event loop runs, as it does in qubesd."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _follow_template(qube: Qube) -> None:
    """Prepare the volumes of *qube* and its disposables from their sources."""
    for follower in (qube, *getattr(qube, "dispvms", ())):
        for volume in follower.volumes.values():
            if isinstance(volume, ZfsVolume) and volume.source is not None:
                volume.preparation.follow_source()
    _collect_discarded(qube.app)


def removed(app: Application, qube: Qube) -> None:
    """Destroy what was prepared for *qube* in pools that it used before.

    qubesd removes the present volumes of *qube*.  A disposable that is removed
    when it stops never had another template, so nothing is left of it.
    """
    if not getattr(qube, "auto_cleanup", False):
        volumes = getattr(qube, "volumes", {}).values()
        _collect_discarded(app, [(v.pool.name, v.vid) for v in volumes])


def _collect_discarded(
    app: Application, besides: Iterable[discarded.Key] = ()
) -> None:
    """Start a task for each pool that destroys unused disposable volumes.

    :param besides: volumes that are not destroyed
    """
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
    """Restore the tags of *qube* after a client changed one of them."""
    tags.update(qube)


def check_feature(qube: Qube, feature: str, value: str) -> None:
    """Check a feature before qubesd sets it.

    :raises QubesValueError: if *qube* cannot have *feature* with *value*
    """
    volumes = getattr(qube, "volumes", None) or None
    if getattr(qube, "klass", None) == "DispVM":
        # qubesd copies them from its template, where they were checked
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
    """Check that a volume has a revision.

    A volume without any content passes, because qubesd sets the features of a
    cloned qube before it copies the content.

    :raises BadOption: if the volume has content, but not *revision*
    """
    if revision == features.BLANK or not isinstance(volume, ZfsVolume):
        return
    revisions = volume.view.committed_ids()
    if revisions and revision not in revisions:
        raise BadOption(
            f"{volume.name} has no revision {revision}; choose one of"
            f" {', '.join(revisions)} (the last one is its present state)"
        )
