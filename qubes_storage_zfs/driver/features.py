# SPDX-License-Identifier: BSD-2-Clause
"""Features of a qube that set properties of its volumes.

=========================  ================================================
feature                    effect
=========================  ================================================
``zfs.PROPERTY``           sets PROPERTY on all volumes of the qube
``zfs.VOLUME.PROPERTY``    sets PROPERTY on one volume; has precedence
``zfs.reset-on-start``     resets the volumes that it names at each start
=========================  ================================================

A volume itself has no options that a user can set in Qubes.  This module only
reads and checks the features; reset.py applies them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping

from ..store import naming, options
from ..store.options import BadOption
from .admin import Qube, Volume

LOG = logging.getLogger("qubes.storage.zfs")

PREFIX = "zfs."
RESET = "reset-on-start"
#: stands for an empty volume, if the feature names no revision
BLANK = "blank"


def _one_of(*words: str) -> Callable[[object], str]:
    """Return a parser that accepts only *words*."""

    def parse(value: object) -> str:
        if value not in words:
            raise BadOption(f"it must be {' or '.join(words)}, not {value!r}")
        return str(value)

    return parse


#: a property that ZFS sets only when it creates a volume
VOLBLOCKSIZE = "volblocksize"
#: properties of ZFS -> how their values are parsed
PROPERTIES: Mapping[str, Callable[[object], str | int]] = {
    "compression": options.parse_compression,
    "sync": _one_of("standard", "always", "disabled"),
    "primarycache": _one_of("all", "metadata", "none"),
    "copies": _one_of("1", "2", "3"),
    VOLBLOCKSIZE: options.parse_blocksize,
}
#: Older versions had this feature.  Any client that may set features could slow
#: down the whole zpool with it.  tune() removes it from volumes that have it
DEDUP = "dedup"
#: the properties that a volume's list of set properties (naming.TUNED) may name
EVER_SET = frozenset((*PROPERTIES, DEDUP))


def check(
    feature: str, value: str, volumes: Mapping[str, Volume] | None
) -> None:
    """Check that a qube can have *feature* with *value*.

    :param feature: a name that starts with ``zfs.``
    :param volumes: the volumes of the qube, by name; None if unknown
    :raises BadOption: if not
    """
    if feature == PREFIX + RESET:
        for volume in parse_reset(value):
            _check_volume(volume, volumes)
            if volumes is not None and not volumes[volume].save_on_stop:
                raise BadOption(
                    f"the volume {volume} is reset at each start anyway; name a"
                    " volume that saves its changes"
                )
        return
    volume, dot, name = feature.removeprefix(PREFIX).rpartition(".")
    if name == DEDUP:
        raise BadOption(
            "dedup is an option of the pool, because it slows down the whole"
            " zpool; add a pool with"
            f" 'qvm-pool add -o dedup={options.DEDUP_ON}'"
        )
    if name not in PROPERTIES:
        raise BadOption(
            f"there is no feature {feature}; use one of"
            f" {', '.join(PREFIX + name for name in (*PROPERTIES, RESET))}, or"
            " zfs.VOLUME.PROPERTY for one volume"
        )
    if dot:
        _check_volume(volume, volumes)
    PROPERTIES[name](value)


def _check_volume(name: str, volumes: Mapping[str, Volume] | None) -> None:
    """Check that a qube has a volume.

    :raises BadOption: if it has no such volume
    """
    if volumes is not None and name not in volumes:
        raise BadOption(
            f"the qube has no volume {name!r}; it has {', '.join(volumes)}"
        )


def parse_reset(value: str) -> dict[str, str]:
    """Parse the value of ``zfs.reset-on-start``.

    :param value: volumes, separated by blanks: ``private`` or ``private=r3``
    :return: volume -> revision that it is reset to, or BLANK
    :raises BadOption: if *value* cannot be parsed
    """
    revisions: dict[str, str] = {}
    for word in value.split():
        volume, equals, revision = word.partition("=")
        try:
            naming.revision_number(revision if equals else "r1")
        except naming.BadName as exc:
            raise BadOption(str(exc)) from exc
        if not volume or volume in revisions:
            raise BadOption(
                f"{value!r} names no volume or a volume twice; name each"
                " volume once"
            )
        revisions[volume] = revision or BLANK
    if not revisions:
        raise BadOption(
            "it must name volumes, such as 'private', or 'private=r3' to reset"
            " to a revision"
        )
    return revisions


def _features(qube: Qube | None) -> Iterator[Mapping[str, str]]:
    """Yield the features of a qube, and of a disposable's template."""
    yield getattr(qube, "features", {})
    if qube is not None and getattr(qube, "klass", None) == "DispVM":
        yield qube.template.features


def _value(qube: Qube | None, *names: str) -> str | None:
    """Return the value of the first feature that the qube has.

    :param names: names of features; the qube's own features have precedence
        over those of its template
    """
    for features in _features(qube):
        for name in names:
            if name in features:
                return features[name]
    return None


def zfs_properties(qube: Qube | None, volume: str) -> dict[str, str | int]:
    """Return the ZFS properties that features set on a volume.

    A value that cannot be parsed is left out.  check() refuses such a value,
    but qubes.xml can have it.

    :param qube: the qube that has the volume; None if no qube has it
    :param volume: name of the volume
    """
    properties: dict[str, str | int] = {}
    if qube is None:
        return properties
    if _value(qube, f"{PREFIX}{volume}.{DEDUP}", PREFIX + DEDUP) is not None:
        LOG.warning(
            "qube %s: the feature %s%s is ignored, because dedup is an option"
            " of the pool",
            qube.name,
            PREFIX,
            DEDUP,
        )
    for name, parse in PROPERTIES.items():
        value = _value(qube, f"{PREFIX}{volume}.{name}", PREFIX + name)
        try:
            if value is not None:
                properties[name] = parse(value)
        except BadOption:
            continue
    return properties


def reset_to(qube: Qube | None, volume: str) -> str | None:
    """Return the revision that each start resets a volume to.

    :param qube: the qube that has the volume; None if no qube has it
    :param volume: name of the volume
    :return: a revision, or BLANK; None: it is not reset
    """
    own_features = getattr(qube, "features", {})
    try:
        return parse_reset(own_features[PREFIX + RESET]).get(volume)
    except (KeyError, BadOption):
        return None
