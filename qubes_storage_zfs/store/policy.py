# SPDX-License-Identifier: BSD-2-Clause
"""Allowed properties of what is on disk: one table, and the check against it.

A disk that was away, received or attached may say anything.  Its properties
decide whether dom0's kernel looks for partitions in what a qube wrote, whether
dom0 mounts a filesystem, and which key encrypts what is written.  So they are
compared with this table when a pool is added or attached, at the first use of
a pool after qubesd started or the zpool was imported, and in part at each start
of a volume.  Nothing read here is used for anything but the comparison and,
shortened and escaped, a message.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ..zfs import importexport, lzc
from ..zfs.errors import NoPassphrase, ZfsError
from ..zfs.text import printable
from . import messages, naming, pool_programs
from .pool_programs import PolicyResult
from .state import Violation


@dataclass(frozen=True)
class Safety:
    """A property that the qubes root of every pool has.

    :ivar value: its value, as zfs(8) spells it
    :ivar is_required: whether the qubes root and everything below it must have
        that value; else an administrator may change it
    :ivar restorable: values from before a migration that undoing may set
        again; None stands for no value of its own.  With none of them dom0
        mounts the qubes root or looks into volumes
    """

    name: str
    value: str
    is_required: bool
    restorable: tuple[str | None, ...]


#: The one table.  The required properties keep the kernel from scanning volumes
#: for partitions, snapshots from having devices, and udev from probing.
SAFETY = (
    Safety("mountpoint", "none", False, (None, "none", "legacy")),
    Safety("volmode", "dev", True, (None, "default", "dev", "none")),
    Safety("snapdev", "hidden", True, (None, "hidden")),
    Safety(naming.UDEV_FLAG, "true", True, (None, "true")),
    Safety(naming.AUTO_SNAPSHOT, "false", False, (None, "true", "false")),
)
#: of the qubes root and everything below it
SAFE: Mapping[str, str] = {
    item.name: item.value for item in SAFETY if item.is_required
}
#: of a qubes root that this driver creates
ROOT_SETTINGS: Mapping[str, str] = {item.name: item.value for item in SAFETY}
#: of an encryption root that was created by other software and is taken over
TAKEN_OVER_SETTINGS: Mapping[str, str] = {
    **ROOT_SETTINGS,
    "canmount": "off",
}
#: of the root dataset of a zpool that this driver creates
ZPOOL_ROOT_SETTINGS: Mapping[str, str] = {
    **ROOT_SETTINGS,
    "canmount": "off",
    "atime": "off",
}
#: of an encrypted pool's container, besides being its own encryption root
KEY_RULES: Mapping[str, str] = {
    "keyformat": "passphrase",
    "keylocation": "prompt",
}
#: datasets in a pool; many times the volumes that a machine can have
LIMIT = 100_000
#: characters of a name or value from a disk that a message shows
SHOWN_IN_SENTENCE = 80


class Refused(messages.Refused):
    """The datasets on disk cannot be used as this pool."""


class NotThere(Refused):
    """The container is missing, or is not this pool's."""


class NotAllowed(Refused):
    """A property of a dataset has a value that is not allowed.

    :ivar dataset: the dataset
    :ivar name: the property
    """

    def __init__(self, qubes_root: str, violation: Violation) -> None:
        # ZFS itself bounds the length of names
        self.dataset = printable(violation.dataset, naming.NAME_MAX)
        self.name = shown(violation.property)
        super().__init__(
            messages.DISK_CHANGED,
            dataset=self.dataset,
            property=self.name,
            value=shown(violation.value),
            wanted=violation.required,
            remedy=_remedy(qubes_root, violation),
        )


@dataclass(frozen=True)
class Place:
    """Where a pool is, as qubes.xml or the caller says, never the disk.

    :ivar pool: its name
    :ivar container: its dataset
    :ivar qubes_root: the qubes root
    :ivar is_encrypted: whether the container is an encryption root of its own
    :ivar zpool_guid: of the zpool, as qubes.xml has it; None: not recorded
    """

    pool: str
    container: str
    qubes_root: str
    is_encrypted: bool
    zpool_guid: str | None = None


def shown(text: str | None) -> str:
    """Return a name or value from a disk as a message may show it.

    :param text: bytes of any kind, decoded with surrogates; None: "-"
    """
    if text is None or text == "":
        return "-"
    return printable(text, SHOWN_IN_SENTENCE)


def claimed(container: str, claimed_by: str) -> NotThere:
    """Return the refusal of a container that another pool's name is on.

    :param claimed_by: that name, as the disk has it
    """
    return NotThere(
        messages.CONTAINER_CLAIMED,
        dataset=container,
        owner=shown(claimed_by),
        property=naming.CLAIM,
    )


def unmarked(pool: str, dataset: str, bare: bool) -> NotThere:
    """Return the refusal of a container that carries no pool's name.

    :param bare: it was received without its properties
    """
    template = messages.CONTAINER_BARE if bare else messages.CONTAINER_UNMARKED
    return NotThere(template, dataset=dataset, pool=pool, property=naming.CLAIM)


def _remedy(qubes_root: str, violation: Violation) -> str:
    """Return what an administrator does who changed the property."""
    dataset, name = violation.dataset, violation.property
    if name not in (*SAFE, "mountpoint", "keylocation"):
        return messages.DISK_REMEDY_MOVE
    at = violation.source or ""
    verb = f"set {name}={violation.required} {qubes_root}"
    if dataset != qubes_root:
        place = at if at.startswith(f"{qubes_root}/") else dataset
        if at == qubes_root or not _is_plain(place):
            place = qubes_root
        else:
            verb = f"inherit {name} {place}"
    return messages.DISK_REMEDY.format(command=verb)


def _is_plain(dataset: str) -> bool:
    """Return whether *dataset* can stand in a command as it is."""
    try:
        lzc.check_name(dataset, "show")
    except ZfsError:
        return False
    return True


# --- the check


def check_zpool(place: Place) -> None:
    """Compare the zpool that is imported with the one that qubes.xml names.

    Another disk's zpool may have the same name, and the pool's name on it.

    :raises NotThere: if it has another GUID
    """
    zpool = place.container.partition("/")[0]
    imported = importexport.guid(zpool)
    if place.zpool_guid in (None, imported) or imported is None:
        return
    raise NotThere(
        messages.ZPOOL_IS_ANOTHER,
        pool=place.pool,
        zpool=zpool,
        guid=place.zpool_guid,
        where="that is imported",
        other=imported,
    )


async def check(place: Place, must_be_claimed: bool = True) -> None:
    """Compare everything in a pool with the table; one channel program.

    :param must_be_claimed: refuse a container without the pool's name on it
    :raises NotThere: if the container or the qubes root does not exist, or
        has another pool's name on it
    :raises NotAllowed: for the first dataset that breaks a rule
    :raises NoPassphrase: if that is the key of an encrypted pool
    :raises ZfsError: if ZFS cannot be asked
    """
    rules, root_rules = dict(SAFE), dict[str, str]()
    if place.is_encrypted:
        rules["encryptionroot"] = place.container
        root_rules.update(KEY_RULES)
    answer = await pool_programs.check_policy(
        place.container, place.qubes_root, rules, root_rules, LIMIT
    )
    _check_identity(place, answer, must_be_claimed)
    violation = answer.violation
    if violation is not None and violation.property == "keyformat":
        raise NoPassphrase(place.container, shown(violation.value))
    if violation is not None:
        raise NotAllowed(place.qubes_root, violation)


def _check_identity(
    place: Place, answer: PolicyResult, must_be_claimed: bool
) -> None:
    missing, claimed_by = answer.missing, answer.claimed_by
    if missing == place.container:
        raise NotThere(messages.CONTAINER_MISSING, dataset=missing)
    if claimed_by is None and must_be_claimed:
        raise unmarked(place.pool, place.container, answer.bare)
    if claimed_by is not None and claimed_by != place.pool:
        raise claimed(place.container, claimed_by)
    if missing:
        raise NotThere(messages.CONTAINER_MISSING, dataset=place.qubes_root)


class FirstUse:
    """Whether a container was checked since its zpool was imported.

    A Container has one for its life in the process.  A failed check is repeated
    at the next operation, so that a repair with zfs(8) needs no restart.

    :ivar _checked: the import of the zpool that was found to be right
    """

    def __init__(self) -> None:
        self._checked: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def check(self, place: Place) -> None:
        """Check once for each import of the zpool; tasks share one check.

        :raises Refused: as check() does
        :raises ZfsError: if ZFS cannot be asked
        """
        lzc.check_name(place.container, "check")
        check_zpool(place)
        imported = importexport.import_id(place.container.partition("/")[0])
        if imported is not None and imported == self._checked:
            return
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or task.done() or task.get_loop() is not loop:
            task = loop.create_task(check(place))
            task.add_done_callback(_retrieve)
            self._task = task
        await asyncio.shield(task)
        self._checked = imported


def _retrieve(task: asyncio.Task[None]) -> None:
    """Have the outcome noticed even if every task that waited was cancelled."""
    if not task.cancelled():
        task.exception()
