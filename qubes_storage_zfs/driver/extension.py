# SPDX-License-Identifier: BSD-2-Clause
"""Handlers of qubesd's events, which contain every failure of this package.

qubesd exits if an extension cannot be imported, or if one fails during the
start of qubesd.  So this module works without the other modules of the package,
and logs the failures of its handlers.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import qubes.exc
import qubes.ext
import qubes.vm.qubesvm

LOG = logging.getLogger("qubes.storage.zfs")

try:
    # load all modules now: a later import could find an upgraded package
    from . import encrypted, events, zvol  # noqa: F401
except Exception:  # qubesd exits on any exception here
    LOG.exception(
        "cannot load the extension of qubes-storage-zfs, so qubesd continues"
        " without it; reinstall the package, then restart qubesd"
    )
    events = None  # type: ignore[assignment]

Handler = TypeVar("Handler", bound=Callable[..., Any])


def _on(
    *names: str, may_refuse: bool = False, **of: object
) -> Callable[[Handler], Handler]:
    """Register a handler of events whose failure is only logged.

    :param names: names of the events
    :param may_refuse: pass a QubesException on, which refuses the action
    :param of: further arguments of qubes.ext.handler()
    """
    mark = cast(Callable[[Handler], Handler], qubes.ext.handler(*names, **of))

    def _wrap(function: Handler) -> Handler:
        def report(event: str, error: Exception) -> None:
            if may_refuse and isinstance(error, qubes.exc.QubesException):
                raise error
            LOG.error("a handler of %s failed", event, exc_info=error)

        @functools.wraps(function)
        def handle(self: Any, qube: Any, event: str, **kwargs: object) -> None:
            try:
                function(self, qube, **kwargs)
            except Exception as exc:  # a failure must not stop qubesd
                report(event, exc)

        @functools.wraps(function)
        async def handle_async(
            self: Any, qube: Any, event: str, **kwargs: object
        ) -> None:
            try:
                await function(self, qube, **kwargs)
            except Exception as exc:  # a failure must not stop qubesd
                report(event, exc)

        waits = inspect.iscoroutinefunction(function)
        return mark(cast(Handler, handle_async if waits else handle))

    return _wrap


class PoolExtension(qubes.ext.Extension):  # type: ignore[misc]
    """Registers the actions of events.py for the events of qubes.

    qubesd creates one object when it starts, and keeps it.  The event loop
    calls its methods.
    """

    # QubesVM creates the volumes in a handler of its own, which runs after
    # handlers for LocalVM
    @_on("domain-load", vm=qubes.vm.qubesvm.QubesVM)
    def on_load(self, qube: Any, **_kwargs: object) -> None:
        """Update the tags of a loaded qube."""
        events.loaded(qube)

    @_on("domain-load")
    def on_load_of_any(self, qube: Any, **_kwargs: object) -> None:
        """Note the application object when dom0 is loaded."""
        events.loaded_any(qube)

    @_on("domain-pre-start", may_refuse=True)
    async def on_pre_start(self, qube: Any, **_kwargs: object) -> None:
        """Load the keys that a qube needs, before its volumes start."""
        await events.starting(qube)

    @_on("domain-start")
    def on_start(self, qube: Any, **_kwargs: object) -> None:
        """Note that a qube has opened its volumes."""
        events.started(qube)

    @_on("domain-start-failed")
    async def on_start_failed(self, qube: Any, **_kwargs: object) -> None:
        """Stop the volumes of a qube that did not start."""
        await events.start_failed(qube)

    @_on("domain-shutdown")
    def on_shutdown(self, qube: Any, **_kwargs: object) -> None:
        """Note that a qube has closed its volumes."""
        events.stopped(qube)

    @_on("domain-create-on-disk", "domain-clone-files")
    def on_create(self, qube: Any, **_kwargs: object) -> None:
        """Prepare the first start of a new qube."""
        events.created(qube)

    # a handler for QubesVM runs before those in which AppVM and DispVM replace
    # the volumes
    @_on("property-set:template", vm=qubes.vm.qubesvm.QubesVM)
    def on_template(self, qube: Any, **_kwargs: object) -> None:
        """Destroy what was prepared from the former template."""
        events.template_changed(qube)

    @_on("domain-delete", system=True)
    def on_delete(self, app: Any, *, vm: Any, **_kwargs: object) -> None:
        """Destroy what was prepared for a removed qube."""
        events.removed(app, vm)

    @_on("domain-tag-add:zfs-pool-*", "domain-tag-delete:zfs-pool-*")
    def on_tag(self, qube: Any, **_kwargs: object) -> None:
        """Restore the tags that this package sets."""
        events.tagged(qube)

    @_on("domain-pre-delete", may_refuse=True, system=True)
    def on_removal(self, app: Any, *, vm: Any, **_kwargs: object) -> None:
        """Refuse to remove a qube that shows the prompt of a pool."""
        events.removing(app, vm)

    @_on("domain-feature-pre-set:zfs.*", may_refuse=True)
    def on_feature(
        self, qube: Any, *, feature: str, value: str, **_kwargs: object
    ) -> None:
        """Refuse a feature that a qube cannot have."""
        events.check_feature(qube, feature, value)
