# SPDX-License-Identifier: BSD-2-Clause
"""The properties that a pool's datasets must have, and the check of them.

A zpool from another machine, or a received dataset, may have any properties.
They decide whether dom0's kernel scans a qube's data for partitions, whether
dom0 mounts a filesystem, and which key encrypts new data.  So the driver
compares them with one table:

- when a pool is added or attached
- at the first use of a pool after qubesd started or the zpool was imported
- in part, at each start of a volume

The values from the disk are used for the comparison only, and in messages,
shortened and escaped.
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
    """A property that the driver sets on every qubes root that it creates.

    The entries of SAFETY are the only instances.

    :ivar value: its value, as zfs(8) spells it
    :ivar is_required: whether the qubes root and everything below it must have
        that value; otherwise an administrator may change it
    :ivar restorable: former values that undoing a migration may restore; None
        means that no value was set.  With none of them does dom0 mount the
        qubes root or scan volumes
    """

    name: str
    value: str
    is_required: bool
    restorable: tuple[str | None, ...]


#: the required properties keep the kernel from scanning volumes for partitions,
#: snapshots from having devices, and udev from probing
SAFETY = (
    Safety("mountpoint", "none", False, (None, "none", "legacy")),
    Safety("volmode", "dev", True, (None, "default", "dev", "none")),
    Safety("snapdev", "hidden", True, (None, "hidden")),
    Safety(naming.UDEV_FLAG, "true", True, (None, "true")),
    Safety(naming.AUTO_SNAPSHOT, "false", False, (None, "true", "false")),
)
#: required of the qubes root and everything below it
SAFE: Mapping[str, str] = {
    item.name: item.value for item in SAFETY if item.is_required
}
#: set on a qubes root that this driver creates
ROOT_SETTINGS: Mapping[str, str] = {item.name: item.value for item in SAFETY}
#: set on an encryption root that existed before this driver claims it
CLAIMED_SETTINGS: Mapping[str, str] = {
    **ROOT_SETTINGS,
    "canmount": "off",
}
#: set on the root dataset of a zpool that this driver creates
ZPOOL_ROOT_SETTINGS: Mapping[str, str] = {
    **ROOT_SETTINGS,
    "canmount": "off",
    "atime": "off",
}
#: required of the container of an encrypted pool, which must also be an
#: encryption root
KEY_RULES: Mapping[str, str] = {
    "keyformat": "passphrase",
    "keylocation": "prompt",
}
#: datasets that a pool may have, many times more than a machine needs; it
#: limits the time of the check
LIMIT = 100_000
#: characters that a message shows of a name or value from a disk
SHOWN_IN_SENTENCE = 80


class Refused(messages.Refused):
    """The datasets on disk cannot be used as this pool."""


class NotThere(Refused):
    """The container is missing, or another pool or no pool has claimed it."""


class NotAllowed(Refused):
    """A property of a dataset has a value that is not allowed.

    :ivar dataset: the dataset
    :ivar name: the property
    """

    def __init__(self, qubes_root: str, violation: Violation) -> None:
        """Describe *violation* and the command that repairs it."""
        # ZFS limits the length of names
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
    """The place of a pool according to qubes.xml or the caller, not the disk.

    :ivar pool: the name of the pool
    :ivar container: the dataset of its container
    :ivar qubes_root: the qubes root
    :ivar is_encrypted: whether the container must be an encryption root
    :ivar zpool_guid: the GUID of the zpool in qubes.xml; None: not recorded
    """

    pool: str
    container: str
    qubes_root: str
    is_encrypted: bool
    zpool_guid: str | None = None


def shown(text: str | None) -> str:
    """Return a name or value from a disk, shortened and escaped for a message.

    :param text: any bytes, decoded with surrogates; None or empty: return "-"
    """
    if text is None or text == "":
        return "-"
    return printable(text, SHOWN_IN_SENTENCE)


def claimed(container: str, claimed_by: str) -> NotThere:
    """Return the error for a container that another pool has claimed.

    :param claimed_by: the name of that pool, as the disk has it: any bytes
    """
    return NotThere(
        messages.CONTAINER_CLAIMED,
        dataset=container,
        owner=shown(claimed_by),
        property=naming.CLAIM,
    )


def unmarked(pool: str, dataset: str, bare: bool) -> NotThere:
    """Return the error for a container that no pool has claimed.

    :param bare: whether it was received without its properties
    """
    template = messages.CONTAINER_BARE if bare else messages.CONTAINER_UNMARKED
    return NotThere(template, dataset=dataset, pool=pool, property=naming.CLAIM)


def _remedy(qubes_root: str, violation: Violation) -> str:
    """Return the remedy: the command that restores the property."""
    dataset, name = violation.dataset, violation.property
    if name not in (*SAFE, "mountpoint", "keylocation"):
        return messages.DISK_REMEDY_MOVE
    at = violation.source or ""
    action = f"set {name}={violation.required} {qubes_root}"
    if dataset != qubes_root:
        place = at if at.startswith(f"{qubes_root}/") else dataset
        if at == qubes_root or not _is_plain(place):
            place = qubes_root
        else:
            action = f"inherit {name} {place}"
    return messages.DISK_REMEDY.format(command=action)


def _is_plain(dataset: str) -> bool:
    """Return whether a command can contain *dataset* without quoting."""
    try:
        lzc.check_name(dataset, "show")
    except ZfsError:
        return False
    return True


# --- the check


def check_zpool(place: Place) -> None:
    """Check that the imported zpool is the one that qubes.xml records.

    A zpool on another disk may have the same name and a container that claims
    to be this pool's.

    :raises NotThere: if the imported zpool has another GUID
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
    """Compare everything in a pool with the table, in one channel program.

    :param must_be_claimed: refuse a container that no pool has claimed
    :raises NotThere: if the container or the qubes root does not exist, or
        another pool has claimed the container
    :raises NotAllowed: for the first dataset with a value that is not allowed
    :raises NoPassphrase: if the key of an encrypted pool is not a passphrase
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
    """The check of a container at its first use after an import of its zpool.

    Each Container creates one and keeps it.  Only tasks of the event loop use
    it; tasks that come during a check wait for that check.  A failed check is
    repeated at the next operation, so a repair with zfs(8) needs no restart.

    :ivar _checked: the import of the zpool that passed the check
    """

    def __init__(self) -> None:
        """Start without a check."""
        self._checked: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def check(self, place: Place) -> None:
        """Check the container once for each import of its zpool.

        :raises Refused: see policy.check()
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
    """Retrieve the exception, so that asyncio does not log it as lost.

    All tasks that waited for the check may have been cancelled.
    """
    if not task.cancelled():
        task.exception()
