# SPDX-License-Identifier: BSD-2-Clause
"""Attributes of volumes and pools in qubes.xml: parsed, and written back.

qubesd hands over every attribute as text, and one that is absent not at all.
An exception here would end qubesd's start, so a value that cannot be parsed
becomes its default.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import qubes.exc
import qubes.storage

from ..store import options
from .errors import plain

#: the attributes of every driver's volumes
_BASE = frozenset(
    name
    for name, parameter in inspect.signature(
        qubes.storage.Volume.__init__
    ).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "self"
)


def split(
    config: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """Split the attributes of a volume.

    :return: those of every driver's volumes, and those of a newer version of
        this driver, which are written back as they came
    """
    base = {name: config[name] for name in config if name in _BASE}
    unknown = {name: config[name] for name in config if name not in _BASE}
    # core-admin 4.3 hands over every value but True as text
    if base.get("ephemeral") == "False":
        base["ephemeral"] = False
    return base, unknown


def for_qubes_xml(
    base: Mapping[str, object], unknown: Mapping[str, object], forensics: bool
) -> dict[str, object]:
    """Return the attributes of a volume for qubes.xml.

    :param base: those of every driver's volumes
    :param forensics: the value of snap_on_start_forensics
    """
    config = {**unknown, **base}
    if forensics:
        config["snap_on_start_forensics"] = True
    # as text: core-admin 4.3 writes no attribute that is False
    if config.get("ephemeral") is False:
        config["ephemeral"] = "False"
    return config


def parse_size(value: object) -> int:
    """Return a size in bytes.

    :raises TypeError: if it is of no type that is a number or its text
    :raises ValueError: if the text is not a number
    """
    if not isinstance(value, (int, float, str)):
        raise TypeError(value)
    return int(value)


def parse(config: dict[str, object], revisions_to_keep: int) -> None:
    """Parse the attributes of a volume, in place.

    :param revisions_to_keep: the default, from the volume's pool
    """
    parsers: dict[str, tuple[Callable[[object], object], object]] = {
        "revisions_to_keep": (options.parse_revisions, revisions_to_keep),
        "size": (parse_size, 0),
        "snap_on_start_forensics": (
            options.PARSERS["snap_on_start_forensics"],
            False,
        ),
    }
    for name, (parser, default) in parsers.items():
        try:
            config[name] = parser(config.get(name, default))
        except (TypeError, ValueError, OverflowError):
            config[name] = default


class RevisionsToKeep:
    """The attribute ``revisions_to_keep`` of a pool or a volume.

    It checks a number when a user sets it.  Without the check, the first stop
    of a qube would report a number that no channel program takes.
    """

    def __get__(self, instance: Any, owner: type) -> int:
        """Return the number of revisions."""
        return int(instance._revisions_to_keep)

    def __set__(self, instance: Any, value: object) -> None:
        """Set the number of revisions.

        :raises QubesValueError: unless it is a whole number from -1 on
        """
        try:
            number = options.parse_revisions(value)
        except options.BadOption as exc:
            raise qubes.exc.QubesValueError(plain(str(exc))) from exc
        instance._revisions_to_keep = number
