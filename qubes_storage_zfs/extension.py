"""What qubesd tells of qubes: keys are asked for before one starts, and what
its first start needs is made when it is."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import qubes.exc
import qubes.ext

from . import ask
from .encrypted import plain_volumes, pools_of
from .errors import told
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")

OUTSIDE = (
    "qube %s: %s of it is written to the pool %s, which is not encrypted by"
    " the key of its other volumes; see encryption.md in the package's"
    " documentation"
)


Handler = TypeVar("Handler", bound=Callable[..., Any])


def _on(*events: str) -> Callable[[Handler], Handler]:
    return cast(Callable[[Handler], Handler], qubes.ext.handler(*events))


class PoolExtension(qubes.ext.Extension):  # type: ignore[misc]
    """Keys from a qube's start to its end, and what its start needs."""

    @_on("domain-load")
    def on_load(self, qube: Any, _event: str) -> None:
        """A backup loads everything a second time, offline."""
        if qube.klass == "AdminVM" and not qube.app.vmm.offline_mode:
            ask.remember(qube.app)

    @_on("domain-pre-start")
    async def on_pre_start(
        self, qube: Any, _event: str, **_kwargs: Any
    ) -> None:
        """:raises StoragePoolException: if a key is not to be had"""
        with told(f"Cannot start {qube.name}"):
            for pool in pools_of(qube):
                pool.key.expect(qube.name)
                try:
                    await pool.unlock(qube.name, qube.app, verb=False)
                except BaseException:
                    pool.key.left(qube.name)
                    raise

    @_on("domain-start")
    def on_start(self, qube: Any, _event: str, **_kwargs: Any) -> None:
        for pool in pools_of(qube):
            pool.key.arrived(qube.name)

    @_on("domain-start-failed")
    async def on_start_failed(
        self, qube: Any, _event: str, **_kwargs: Any
    ) -> None:
        """qubesd leaves open what was started before another volume failed,
        and that would keep the key."""
        pools = pools_of(qube)
        if not pools or qube.is_running():
            return
        try:
            await qube.storage.stop()
        except qubes.exc.QubesException as exc:
            LOG.warning("qube %s: %s", qube.name, exc)
        for pool in pools:
            pool.key.left(qube.name)

    @_on("domain-shutdown")
    def on_shutdown(self, qube: Any, _event: str, **_kwargs: Any) -> None:
        for pool in pools_of(qube):
            pool.key.left(qube.name)

    @_on("domain-create-on-disk", "domain-clone-files")
    def on_create(self, qube: Any, _event: str, **_kwargs: Any) -> None:
        for volume in qube.volumes.values():
            if isinstance(volume, ZfsVolume):
                volume.prepare()
        for volume in plain_volumes(qube):
            LOG.warning(OUTSIDE, qube.name, volume.name, volume.pool.name)
