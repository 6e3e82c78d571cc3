# SPDX-License-Identifier: BSD-2-Clause
"""Extensions: singletons whose marked methods hear events."""

import importlib.metadata

import qubes
import qubes.events

_registered = []


class Extension:
    """Base of all extensions; only handlers of the class itself count."""

    def __new__(cls):
        if "_instance" not in vars(cls):
            cls._instance = super().__new__(cls)
            for name in list(vars(cls)):
                func = getattr(cls._instance, name)
                if not qubes.events.ishandler(func):
                    continue
                target = func.ha_vm or qubes.Qubes
                for event in func.ha_events:
                    target.__handlers__[event].append(func)
        return cls._instance


def register_extension(cls):
    """Have every later Qubes object load *cls* as an installed one."""
    _registered.append(cls)


def get_extensions():
    """Instances of all extensions, installed or registered."""
    points = importlib.metadata.entry_points(group="qubes.ext")
    return {cls() for cls in [p.load() for p in points] + _registered}


def handler(*events, **kwargs):
    """Mark an extension's method as handler of *events*.

    They are events of the qubes of class ``vm`` (default: of all), or of
    the application with ``system=True``.
    """

    def mark(func):
        func.ha_events = events
        func.ha_vm = kwargs.get("vm", qubes.vm.LocalVM)
        if kwargs.get("system", False):
            func.ha_vm = None
        return func

    return mark
