# SPDX-License-Identifier: BSD-2-Clause
"""Failures as exceptions that carry data; store/messages.py has the messages.

The *data* of an exception fills the template of its message.  ``str()`` of a
ZfsError is for the log.
"""

import errno as _errno
from collections.abc import Mapping

from .text import printable


class Failure(Exception):
    """A failure whose message is a template that is filled with data.

    :ivar template: for :py:meth:`str.format`; without data it is the message
    :ivar data: name in the template -> value
    """

    def __init__(self, template: str, /, **data: object) -> None:
        """Create a failure with the message *template*, filled with *data*."""
        super().__init__(template, *data.values())
        self.template = template
        self.data: Mapping[str, object] = data

    def __str__(self) -> str:
        """Return the message."""
        return self.template.format(**self.data) if self.data else self.template


class ZfsError(Exception):
    """A call into ZFS failed.

    :ivar dataset: dataset, snapshot or zpool that is the subject of the call
    :ivar code: errno of the failure; ZFS has some of its own, above 1000
    :ivar call: the operation that ZFS refused
    """

    def __init__(self, dataset: str, code: int = 0, call: str = "") -> None:
        """Create the failure of *call* for *dataset* with the errno *code*."""
        super().__init__(dataset, code, call)
        self.dataset = dataset
        self.code = code
        self.call = call

    @property
    def errno_name(self) -> str:
        """The name of the errno, or its number if Python has no name for it."""
        return _errno.errorcode.get(self.code, str(self.code))

    @property
    def zpool(self) -> str:
        """The zpool that the dataset is in."""
        return self.dataset.partition("/")[0].partition("@")[0]

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {
            "dataset": self.dataset,
            "zpool": self.zpool,
            "call": self.call,
            "code": self.errno_name,
        }

    def __str__(self) -> str:
        """Return call, dataset and errno, for the log."""
        return printable(
            f"{self.call or 'ZFS'} {self.dataset}: {self.errno_name}"
        )


class NoModule(ZfsError):
    """The zfs kernel module is not loaded, or pyzfs is not installed."""


class PoolAbsent(ZfsError):
    """No zpool of that name is imported."""


class NotReadable(ZfsError):
    """The zpool is imported, but does not answer now."""


class SilentZpool(NotReadable):
    """The zpool did not answer in time, because a disk of it does not."""

    def __init__(self, zpool: str) -> None:
        """Create the failure for *zpool*."""
        super().__init__(zpool, _errno.ETIMEDOUT, "ask")


class Suspended(NotReadable):
    """ZFS has stopped all I/O of the zpool because its disks fail."""


class ReadOnlyZpool(NotReadable):
    """The zpool is imported read-only, so ZFS runs no channel program in it."""


class ReadOnlyDataset(ZfsError):
    """A volume has readonly=on; *dataset* is the dataset where that is set."""


class NoPassphrase(ZfsError):
    """The key of an encryption root is not derived from a passphrase.

    :ivar keyformat: "raw" or "hex"
    """

    def __init__(self, dataset: str, keyformat: str) -> None:
        """Create the failure for an encryption root and its key format."""
        super().__init__(dataset, _errno.EINVAL, "load_key")
        self.keyformat = keyformat

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
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
    """The encryption key of the dataset is not loaded."""


class WrongPassphrase(ZfsError):
    """Every answer to the prompts for the present passphrase was wrong."""

    def __init__(self, dataset: str) -> None:
        """Create the failure for an encryption root."""
        super().__init__(dataset, _errno.EACCES, "unlock")


class NoNewPassphrase(WrongPassphrase):
    """No valid new passphrase was entered twice."""


class BadAnswer(ZfsError):
    """A prompt returned something other than one line of text."""

    def __init__(self, dataset: str) -> None:
        """Create the failure for an encryption root."""
        super().__init__(dataset, _errno.EBADMSG, "answer")


class NoAnswer(ZfsError):
    """The standard input ended before a passphrase was read."""

    def __init__(self, dataset: str) -> None:
        """Create the failure for an encryption root."""
        super().__init__(dataset, _errno.ENODATA, "answer")


class BadIterations(ZfsError):
    """The number of PBKDF2 iterations on the disk is out of bounds.

    :ivar iterations: the value on the disk
    """

    def __init__(self, dataset: str, iterations: str) -> None:
        """Create the failure for an encryption root and its iterations."""
        super().__init__(dataset, _errno.EDOM, "derive a key of")
        self.iterations = iterations

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {**super().data, "iterations": self.iterations}


class Unprotected(ZfsError):
    """The keyholder could not protect its memory.

    :ivar protection: the call that the kernel refused, and the reason
    """

    def __init__(self, dataset: str, protection: str) -> None:
        """Create the failure for an encryption root."""
        super().__init__(dataset, _errno.EPERM, protection)
        self.protection = protection

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {**super().data, "protection": self.protection}


class Silent(ZfsError):
    """The keyholder did not answer in time, and was killed.

    :ivar seconds: time that keys.py waited for it
    """

    def __init__(self, dataset: str, seconds: float) -> None:
        """Create the failure for an encryption root."""
        super().__init__(dataset, _errno.ETIMEDOUT, "derive a key of")
        self.seconds = seconds

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {**super().data, "seconds": f"{self.seconds:.0f}"}


class Busy(ZfsError):
    """A process or device has the dataset open."""

    #: descriptions of the holders; empty here, because none were seen
    holders: tuple[str, ...] = ()

    def __init__(
        self, dataset: str, code: int = _errno.EBUSY, call: str = ""
    ) -> None:
        """Create the failure of *call* for *dataset*."""
        super().__init__(dataset, code, call)


class InUse(Busy):
    """The dataset is open, and the processes or devices that hold it are known.

    :ivar holders: descriptions of them, at least one
    """

    def __init__(
        self,
        dataset: str,
        code: int = _errno.EBUSY,
        call: str = "",
        holders: tuple[str, ...] = (),
    ) -> None:
        """Create the failure of *call* for *dataset* with its *holders*."""
        super().__init__(dataset, code, call)
        self.holders = holders

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {**super().data, "holders": ", ".join(self.holders)}


class NoDevice(ZfsError):
    """The device node of a volume did not appear, or is another volume's."""


class CommandFailed(ZfsError):
    """A program, mostly zpool(8) or zfs(8), refused or did not run.

    :ivar output: the text that it printed
    """

    def __init__(self, command: str, code: int, output: str) -> None:
        """Create the failure of *command* with its exit status *code*."""
        super().__init__(command, code, "run")
        self.output = output

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data for the template of a message."""
        return {
            **super().data,
            "command": self.dataset,
            "output": self._advice(),
        }

    def _advice(self) -> str:
        """Return the output as one line, without the lines that advise ``-f``.

        ``zpool create -f`` would overwrite disks that are in use.
        """
        lines = (self.output or str(self.code)).split("\n")
        return " ".join(line.strip() for line in lines if "-f'" not in line)

    def __str__(self) -> str:
        """Return the command and its output, for the log."""
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
    # pool_status_check() in zfs_ioctl.c returns these before any change
    _errno.EROFS: ReadOnlyZpool,
    _errno.EAGAIN: Suspended,
}


def from_errno(code: int, dataset: str, call: str) -> ZfsError:
    """Return the exception for an errno; the caller raises it.

    :param dataset: subject of the call
    :param call: the operation that ZFS refused
    """
    return _BY_ERRNO.get(code, ZfsError)(dataset, code, call)


def busy(exc: Busy, holders: tuple[str, ...]) -> Busy:
    """Return *exc* with the holders that were seen; the caller raises it."""
    kind = InUse(exc.dataset, exc.code, exc.call, holders)
    return kind if holders else Busy(exc.dataset, exc.code, exc.call)
