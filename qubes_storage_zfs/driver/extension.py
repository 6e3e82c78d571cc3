# SPDX-License-Identifier: BSD-2-Clause
"""What qubesd tells of qubes, and that nothing of ours can stop it.

qubesd ends if an extension cannot be imported, or if one fails while it
starts.  So this needs no other module of the package, and what fails there is
written to the log.
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
    from . import events
except Exception:  # whatever it is, qubesd must live
    LOG.exception("qubes-storage-zfs is broken; qubesd goes on without it")
    events = None  # type: ignore[assignment]

Handler = TypeVar("Handler", bound=Callable[..., Any])


def _on(
    *names: str, may_refuse: bool = False, **of: object
) -> Callable[[Handler], Handler]:
    """A handler of these events, which fails alone.

    :param may_refuse: a QubesException of it is what a person is told
    :param of: as qubes.ext.handler() takes it
    """
    mark = cast(Callable[[Handler], Handler], qubes.ext.handler(*names, **of))

    def _wrap(function: Handler) -> Handler:
        def report(event: str, error: Exception) -> None:
            if may_refuse and isinstance(error, qubes.exc.QubesException):
                raise error
            LOG.error("event %s", event, exc_info=error)

        @functools.wraps(function)
        def handle(self: Any, qube: Any, event: str, **kwargs: object) -> None:
            try:
                function(self, qube, **kwargs)
            except Exception as exc:  # see above
                report(event, exc)

        @functools.wraps(function)
        async def handle_async(
            self: Any, qube: Any, event: str, **kwargs: object
        ) -> None:
            try:
                await function(self, qube, **kwargs)
            except Exception as exc:  # see above
                report(event, exc)

        waits = inspect.iscoroutinefunction(function)
        return mark(cast(Handler, handle_async if waits else handle))

    return _wrap


class PoolExtension(qubes.ext.Extension):  # type: ignore[misc]
    """Keys from a qube's start to its end, what its start needs, its tags and
    its features."""

    # qubes get their volumes by a handler of QubesVM's own, which comes after
    # those of all LocalVMs
    @_on("domain-load", vm=qubes.vm.qubesvm.QubesVM)
    def on_load(self, qube: Any, **_kwargs: object) -> None:
        events.loaded(qube)

    @_on("domain-load")
    def on_load_of_any(self, qube: Any, **_kwargs: object) -> None:
        events.loaded_any(qube)

    @_on("domain-pre-start", may_refuse=True)
    async def on_pre_start(self, qube: Any, **_kwargs: object) -> None:
        await events.starting(qube)

    @_on("domain-start")
    def on_start(self, qube: Any, **_kwargs: object) -> None:
        events.started(qube)

    @_on("domain-start-failed")
    async def on_start_failed(self, qube: Any, **_kwargs: object) -> None:
        await events.start_failed(qube)

    @_on("domain-shutdown")
    def on_shutdown(self, qube: Any, **_kwargs: object) -> None:
        events.stopped(qube)

    @_on("domain-create-on-disk", "domain-clone-files")
    def on_create(self, qube: Any, **_kwargs: object) -> None:
        events.created(qube)

    # QubesVM's own come before those of AppVM and DispVM, which replace volumes
    @_on("property-set:template", vm=qubes.vm.qubesvm.QubesVM)
    def on_template(self, qube: Any, **_kwargs: object) -> None:
        events.template_changed(qube)

    @_on("domain-delete", system=True)
    def on_delete(self, app: Any, *, vm: Any, **_kwargs: object) -> None:
        events.removed(app, vm)

    @_on("domain-tag-add:zfs-pool-*", "domain-tag-delete:zfs-pool-*")
    def on_tag(self, qube: Any, **_kwargs: object) -> None:
        events.tagged(qube)

    @_on("domain-pre-delete", may_refuse=True, system=True)
    def on_removal(self, app: Any, *, vm: Any, **_kwargs: object) -> None:
        events.removing(app, vm)

    @_on("domain-feature-pre-set:zfs.*", may_refuse=True)
    def on_feature(
        self, qube: Any, *, feature: str, value: str, **_kwargs: object
    ) -> None:
        events.check_feature(qube, feature, value)
