# SPDX-License-Identifier: BSD-2-Clause
"""Events, their handlers, and the order of these."""

import asyncio
import collections
import fnmatch


def handler(*events):
    """Mark a method as a handler of *events* (patterns) for its class."""

    def mark(func):
        func.ha_events = events
        func.ha_bound = True
        return func

    return mark


def ishandler(obj):
    """Return whether *obj* was marked as an event handler."""
    return callable(obj) and hasattr(obj, "ha_events")


class Emitter:
    """An object with events; it fires none before events_enabled.

    Handlers run from the base class to the derived one (the other way for
    a "pre" event) and, within one class, its own before those of
    extensions.
    """

    __handlers__ = collections.defaultdict(list)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__handlers__ = collections.defaultdict(list)
        for obj in list(vars(cls).values()):
            if ishandler(obj):
                for event in obj.ha_events:
                    cls.__handlers__[event].append(obj)

    def __init__(self):
        self.events_enabled = False
        self.__handlers__ = collections.defaultdict(list)

    def _handlers_for(self, event, pre_event):
        holders = [self, *type(self).__mro__]
        if not pre_event:
            holders.reverse()
        for holder in holders:
            handlers_by_event = vars(holder).get("__handlers__", {})
            funcs = [
                func
                for pattern, group in handlers_by_event.items()
                if fnmatch.fnmatch(event, pattern)
                for func in group
            ]
            yield from sorted(funcs, key=lambda f: not hasattr(f, "ha_bound"))

    def _fire(self, event, pre_event, kwargs):
        effects, pending = [], []
        if not self.events_enabled:
            return effects, pending
        for func in list(self._handlers_for(event, pre_event)):
            effect = func(self, event, **kwargs)
            if asyncio.iscoroutine(effect):
                pending.append(effect)
            elif effect is not None:
                effects.extend(effect)
        return effects, pending

    def fire_event(self, event, pre_event=False, **kwargs):
        """Call the handlers; a coroutine among them is a RuntimeError."""
        effects, pending = self._fire(event, pre_event, kwargs)
        for coro in pending:
            coro.close()
        if pending:
            raise RuntimeError(f"async handler of the sync event {event}")
        return effects

    async def fire_event_async(self, event, pre_event=False, **kwargs):
        """Call the handlers, then run those that are coroutines together."""
        effects, pending = self._fire(event, pre_event, kwargs)
        if pending:
            tasks = [asyncio.create_task(coro) for coro in pending]
            await asyncio.wait(tasks)
            for task in tasks:
                effects.extend(task.result() or [])
        return effects
