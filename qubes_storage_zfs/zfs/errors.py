# SPDX-License-Identifier: BSD-2-Clause
"""Failures as exceptions that carry data; store/messages.py has the texts.

An exception's *data* are what its message can name.  ``str()`` of a ZfsError is
for the log.
"""

import errno as _errno
from collections.abc import Mapping

from .text import printable


class Failure(Exception):
    """A failure whose message is a template, filled in with data.

    :ivar template: a text of :py:meth:`str.format`; it is shown as it is if
        there is no data
    :ivar data: name in the template -> value
    """

    def __init__(self, template: str, /, **data: object) -> None:
        super().__init__(template, *data.values())
        self.template = template
        self.data: Mapping[str, object] = data

    def __str__(self) -> str:
        return self.template.format(**self.data) if self.data else self.template


class ZfsError(Exception):
    """A call into ZFS failed.

    :ivar dataset: the dataset, snapshot or zpool that the call was about
    :ivar code: the errno it failed with (may be one of ZFS' own, > 1000)
    :ivar call: the operation that ZFS refused
    """

    def __init__(self, dataset: str, code: int = 0, call: str = "") -> None:
        super().__init__(dataset, code, call)
        self.dataset = dataset
        self.code = code
        self.call = call

    @property
    def errno_name(self) -> str:
        """The symbol of the errno, or its number if it has none here."""
        return _errno.errorcode.get(self.code, str(self.code))

    @property
    def zpool(self) -> str:
        """The zpool that the dataset is in."""
        return self.dataset.partition("/")[0].partition("@")[0]

    @property
    def data(self) -> Mapping[str, object]:
        """Everything that a message about the failure can name."""
        return {
            "dataset": self.dataset,
            "zpool": self.zpool,
            "call": self.call,
            "code": self.errno_name,
        }

    def __str__(self) -> str:
        return printable(
            f"{self.call or 'ZFS'} {self.dataset}: {self.errno_name}"
        )


class NoModule(ZfsError):
    """The zfs kernel module (or pyzfs) is missing."""


class PoolAbsent(ZfsError):
    """No zpool of that name is imported."""


class NotReadable(ZfsError):
    """The zpool is imported, but cannot be asked now."""


class SilentZpool(NotReadable):
    """The zpool did not answer in time; one of its disks does not."""

    def __init__(self, zpool: str) -> None:
        super().__init__(zpool, _errno.ETIMEDOUT, "ask")


class Suspended(NotReadable):
    """ZFS has stopped all I/O of the zpool, because its disks fail."""


class ReadOnlyZpool(NotReadable):
    """The zpool is imported read-only; no channel program runs in it."""


class ReadOnlyDataset(ZfsError):
    """A volume is readonly=on; *dataset* is where that is set."""


class NoPassphrase(ZfsError):
    """The key of an encryption root is not made from a passphrase.

    :ivar keyformat: raw or hex
    """

    def __init__(self, dataset: str, keyformat: str) -> None:
        super().__init__(dataset, _errno.EINVAL, "load_key")
        self.keyformat = keyformat

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, "keyformat": self.keyformat}


class NotFound(ZfsError):
    """The dataset or snapshot does not exist."""


class Exists(ZfsError):
    """A dataset or snapshot of that name exists."""


class NameTooLong(ZfsError):
    """ZFS does not allow names of that length."""


class NoSpace(ZfsError):
    """The zpool, or a quota above the dataset, is full."""


class Unwritten(ZfsError):
    """The volume was never written to."""


class Locked(ZfsError):
    """The dataset's encryption key is not loaded."""


class WrongPassphrase(ZfsError):
    """Every answer to the prompts for the present passphrase was wrong."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset, _errno.EACCES, "unlock")


class NoNewPassphrase(WrongPassphrase):
    """No two answers to the prompts for a new passphrase matched."""


class BadAnswer(ZfsError):
    """A prompt returned something other than one line of text."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset, _errno.EBADMSG, "answer")


class NoAnswer(ZfsError):
    """The standard input ended before a passphrase came."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset, _errno.ENODATA, "answer")


class BadIterations(ZfsError):
    """The disk has a number of iterations that no key should take.

    :ivar iterations: the value on the disk
    """

    def __init__(self, dataset: str, iterations: str) -> None:
        super().__init__(dataset, _errno.EDOM, "derive a key of")
        self.iterations = iterations

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, "iterations": self.iterations}


class Unprotected(ZfsError):
    """The process for a passphrase could not protect its memory.

    :ivar protection: the call that the kernel refused, and its reason
    """

    def __init__(self, dataset: str, protection: str) -> None:
        super().__init__(dataset, _errno.EPERM, protection)
        self.protection = protection

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, "protection": self.protection}


class Silent(ZfsError):
    """The process for a passphrase got stuck, and was killed.

    :ivar seconds: how long keys.py waited for it
    """

    def __init__(self, dataset: str, seconds: float) -> None:
        super().__init__(dataset, _errno.ETIMEDOUT, "derive a key of")
        self.seconds = seconds

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, "seconds": f"{self.seconds:.0f}"}


class Busy(ZfsError):
    """A process or device holds the dataset open."""

    #: descriptions of the holders; none were seen
    holders: tuple[str, ...] = ()

    def __init__(
        self, dataset: str, code: int = _errno.EBUSY, call: str = ""
    ) -> None:
        super().__init__(dataset, code, call)


class InUse(Busy):
    """Holders of the dataset that were seen, by name.

    :ivar holders: their descriptions, at least one
    """

    def __init__(
        self,
        dataset: str,
        code: int = _errno.EBUSY,
        call: str = "",
        holders: tuple[str, ...] = (),
    ) -> None:
        super().__init__(dataset, code, call)
        self.holders = holders

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, "holders": ", ".join(self.holders)}


class NoDevice(ZfsError):
    """The volume's device node did not appear, or is another volume's."""


class CommandFailed(ZfsError):
    """zpool or zfs, run as a program, refused.

    :ivar output: the text that it printed
    """

    def __init__(self, command: str, code: int, output: str) -> None:
        super().__init__(command, code, "run")
        self.output = output

    @property
    def data(self) -> Mapping[str, object]:
        return {
            **super().data,
            "command": self.dataset,
            "output": self._advice(),
        }

    def _advice(self) -> str:
        """Return the output as one line, without advice to force anything.

        zpool(8) advises ``-f``, which overwrites disks that are in use.
        """
        lines = (self.output or str(self.code)).split("\n")
        return " ".join(line.strip() for line in lines if "-f'" not in line)

    def __str__(self) -> str:
        return f"{self.dataset}: {self.output or self.code}"


_BY_ERRNO: dict[int, type[ZfsError]] = {
    _errno.ENOENT: NotFound,
    _errno.EEXIST: Exists,
    _errno.EBUSY: Busy,
    _errno.ENOSPC: NoSpace,
    _errno.EDQUOT: NoSpace,
    _errno.EACCES: Locked,
    _errno.ENODATA: Unwritten,
    _errno.ENAMETOOLONG: NameTooLong,
    # these two by pool_status_check() in zfs_ioctl.c, before anything is done
    _errno.EROFS: ReadOnlyZpool,
    _errno.EAGAIN: Suspended,
}


def from_errno(code: int, dataset: str, call: str) -> ZfsError:
    """Return the exception for *code*, to be raised by the caller."""
    return _BY_ERRNO.get(code, ZfsError)(dataset, code, call)


def busy(exc: Busy, holders: tuple[str, ...]) -> Busy:
    """Return *exc* with the holders that were seen, to be raised."""
    kind = InUse(exc.dataset, exc.code, exc.call, holders)
    return kind if holders else Busy(exc.dataset, exc.code, exc.call)
