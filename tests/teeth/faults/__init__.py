"""The deliberate faults: each module of this package lists those of a topic."""

import importlib
import pkgutil

from .base import Fault

FAULTS: tuple[Fault, ...] = tuple(
    fault
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
    for fault in importlib.import_module(f"{__name__}.{module.name}").FAULTS
)
