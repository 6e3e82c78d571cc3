# SPDX-License-Identifier: BSD-2-Clause
"""Features of a qube that are about its volumes here: a qube has no other place
for a person to say so.

``zfs.PROPERTY`` is for all its volumes, ``zfs.VOLUME.PROPERTY`` for one and
before the other; ``zfs.reset-on-start`` names volumes that begin anew at each
start.  Nothing here touches ZFS.
"""

import logging
from collections.abc import Callable, Iterator, Mapping

from ..store import naming, options
from ..store.options import BadOption
from .admin import Qube, Volume

LOG = logging.getLogger("qubes.storage.zfs")

PREFIX = "zfs."
RESET = "reset-on-start"
#: what a volume is reset to if no revision is named: as it was when new
BLANK = "blank"


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise BadOption(f"it must be {' or '.join(words)}, not {value!r}")
        return str(value)

    return parse


#: what a volume can be made with, by features alone
VOLBLOCKSIZE = "volblocksize"
#: properties of ZFS -> how their values are parsed
PROPERTIES: Mapping[str, Callable[[object], str | int]] = {
    "compression": options.parse_compression,
    "sync": _one_of("standard", "always", "disabled"),
    "primarycache": _one_of("all", "metadata", "none"),
    "copies": _one_of("1", "2", "3"),
    VOLBLOCKSIZE: options.parse_blocksize,
}
#: a feature once, with which any client that may set features could slow down
#: the whole zpool; a volume that was given it gets its pool's value back
DEDUP = "dedup"
#: what a volume's mark (layout.TUNED) may name
EVER_SET = frozenset((*PROPERTIES, DEDUP))


def check(
    feature: str, value: str, volumes: Mapping[str, Volume] | None
) -> None:
    """Whether a qube can have *feature*, which begins with ``zfs.``.

    :param volumes: of the qube, by name; None if they are not known yet
    :raises BadOption: with the reason
    """
    if feature == PREFIX + RESET:
        for volume in parse_reset(value):
            _check_volume(volume, volumes)
            if volumes is not None and not volumes[volume].save_on_stop:
                raise BadOption(
                    f"the volume {volume} is as new at every start anyway"
                )
        return
    volume, dot, name = feature.removeprefix(PREFIX).rpartition(".")
    if name == DEDUP:
        raise BadOption(
            "dedup is an option of the pool: it slows down the whole zpool; add"
            f" a pool with 'qvm-pool add -o dedup={options.DEDUP_ON}'"
        )
    if name not in PROPERTIES:
        raise BadOption(
            f"{feature} is nothing that a qube can have; there are"
            f" {', '.join(PREFIX + name for name in (*PROPERTIES, RESET))}, and"
            " the former for one volume, such as zfs.private.compression"
        )
    if dot:
        _check_volume(volume, volumes)
    PROPERTIES[name](value)


def _check_volume(name: str, volumes: Mapping[str, Volume] | None) -> None:
    if volumes is not None and name not in volumes:
        raise BadOption(
            f"the qube has no volume {name!r}; it has {', '.join(volumes)}"
        )


def parse_reset(value: str) -> dict[str, str]:
    """Volume -> revision that it is reset to, or BLANK.

    :param value: ``private``, ``private=r3``; several with blanks between
    :raises BadOption: if it is none of these
    """
    revisions: dict[str, str] = {}
    for word in value.split():
        volume, equals, revision = word.partition("=")
        try:
            naming.revision_number(revision if equals else "r1")
        except naming.BadName as exc:
            raise BadOption(str(exc)) from exc
        if not volume or volume in revisions:
            raise BadOption(f"{value!r} does not name each volume once")
        revisions[volume] = revision or BLANK
    if not revisions:
        raise BadOption(
            "it must name volumes, such as private, or private=r3 for a"
            " revision of it"
        )
    return revisions


def _features(qube: Qube | None) -> Iterator[Mapping[str, str]]:
    """Of a qube; then those that it follows."""
    yield getattr(qube, "features", {})
    if qube is not None and getattr(qube, "klass", None) == "DispVM":
        yield qube.template.features


def _value(qube: Qube | None, *names: str) -> str | None:
    """Of the first of these features that it has."""
    for features in _features(qube):
        for name in names:
            if name in features:
                return features[name]
    return None


def zfs_properties(qube: Qube | None, volume: str) -> dict[str, str | int]:
    """Properties of ZFS that a qube's volume is to have; what qubesd could
    not have let in is left out.

    :param qube: None if the volume is no qube's
    """
    properties: dict[str, str | int] = {}
    if qube is None:
        return properties
    if _value(qube, f"{PREFIX}{volume}.{DEDUP}", PREFIX + DEDUP) is not None:
        LOG.warning(
            "qube %s: the feature %s%s is ignored; dedup is an option of the"
            " pool",
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
    """The revision that a qube's volume is reset to at each start, or BLANK;
    None: it is not."""
    own_features = getattr(qube, "features", {})
    try:
        return parse_reset(own_features[PREFIX + RESET]).get(volume)
    except (KeyError, BadOption):
        return None
