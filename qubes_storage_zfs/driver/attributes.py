# SPDX-License-Identifier: BSD-2-Clause
"""Parse the attributes of volumes and pools in qubes.xml, and write them back.

qubesd passes each attribute as text, and passes no value for an absent one.  An
exception here would stop qubesd from starting, so a value that cannot be parsed
is replaced by its default.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import qubes.exc
import qubes.storage

from ..store import options
from .errors import plain

#: names of the attributes that volumes of every driver have
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

    :return: the attributes that volumes of every driver have; and the others,
        which a newer version of this driver wrote and which are kept unchanged
    """
    base = {name: config[name] for name in config if name in _BASE}
    unknown = {name: config[name] for name in config if name not in _BASE}
    # core-admin 4.3 passes every value except True as text
    if base.get("ephemeral") == "False":
        base["ephemeral"] = False
    return base, unknown


def for_qubes_xml(
    base: Mapping[str, object], unknown: Mapping[str, object], forensics: bool
) -> dict[str, object]:
    """Return the attributes of a volume for qubes.xml.

    :param base: the attributes that volumes of every driver have
    :param unknown: the other attributes, as split() returned them
    :param forensics: the value of snap_on_start_forensics
    """
    config = {**unknown, **base}
    if forensics:
        config["snap_on_start_forensics"] = True
    # a text, because core-admin 4.3 does not write an attribute that is False
    if config.get("ephemeral") is False:
        config["ephemeral"] = "False"
    return config


def parse_size(value: object) -> int:
    """Return a size in bytes.

    :raises TypeError: if *value* is neither a number nor a text
    :raises ValueError: if the text is not a number
    """
    if not isinstance(value, (int, float, str)):
        raise TypeError(value)
    return int(value)


def parse(config: dict[str, object], revisions_to_keep: int) -> None:
    """Parse the attributes of a volume, in place.

    :param config: the attributes; a value that cannot be parsed becomes its
        default
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

    Each of the two classes has one such descriptor.  It checks the number when
    a user sets it.  Otherwise only a stop of the qube would fail, because the
    channel program does not accept the number.
    """

    def __get__(self, instance: Any, owner: type) -> int:
        """Return the number of revisions."""
        return int(vars(instance)["revisions_to_keep"])

    def __set__(self, instance: Any, value: object) -> None:
        """Set the number of revisions.

        :raises QubesValueError: unless it is a whole number from -1 on
        """
        try:
            number = options.parse_revisions(value)
        except options.BadOption as exc:
            raise qubes.exc.QubesValueError(plain(str(exc))) from exc
        vars(instance)["revisions_to_keep"] = number
