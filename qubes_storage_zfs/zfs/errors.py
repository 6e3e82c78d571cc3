"""What ZFS can answer, as exceptions that carry data instead of prose."""

import errno as _errno

from .text import printable


class ZfsError(Exception):
    """A call into ZFS failed.

    :ivar dataset: the dataset, snapshot or zpool it was about
    :ivar code: the errno it failed with (may be one of ZFS' own, > 1000)
    :ivar call: what was asked for
    """

    def __init__(self, dataset: str, code: int = 0, call: str = "") -> None:
        super().__init__(dataset, code, call)
        self.dataset = dataset
        self.code = code
        self.call = call

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.code, str(self.code))
        return printable(f"{self.call or 'ZFS'} {self.dataset}: {name}")


class NoModule(ZfsError):
    """The zfs kernel module (or pyzfs) is not there."""


class PoolAbsent(ZfsError):
    """No zpool of that name is imported."""


class NotReadable(ZfsError):
    """The zpool is imported, but cannot be asked now.

    :ivar zpool: its name
    """

    @property
    def zpool(self) -> str:
        return self.dataset.partition("/")[0]


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


class NotFound(ZfsError):
    """The dataset or snapshot does not exist."""


class Exists(ZfsError):
    """Something of that name exists already."""


class NoSpace(ZfsError):
    """The zpool, or a quota above the dataset, is full."""


class Unwritten(ZfsError):
    """Nothing was ever written to the volume."""


class Locked(ZfsError):
    """The dataset's encryption key is not loaded."""


class WrongPassphrase(ZfsError):
    """Every answer to a prompt was wrong, or no two of them were the same."""


class BadAnswer(ZfsError):
    """What came was no answer that a person can have given."""


class NoAnswer(ZfsError):
    """The standard input ended before a passphrase came."""


class BadIterations(ZfsError):
    """The disk says that a key takes a number of iterations that it cannot.

    :ivar call: what the disk says
    """


class Unprotected(ZfsError):
    """The process for a passphrase could not protect its memory.

    :ivar call: what the kernel refused, and why
    """


class Silent(ZfsError):
    """The process for a passphrase got stuck, and was killed.

    :ivar call: seconds that it was waited for
    """


class Busy(ZfsError):
    """Something holds the dataset open.

    :ivar holders: who, in words; empty if nobody was seen any more
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


class NoDevice(ZfsError):
    """The volume's device node did not appear, or is another's."""


class CommandFailed(ZfsError):
    """zpool or zfs, run as a program, refused.

    :ivar output: what it printed
    """

    def __init__(self, command: str, code: int, output: str) -> None:
        super().__init__(command, code, "run")
        self.output = output

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
    # these two by pool_status_check() in zfs_ioctl.c, before anything is done
    _errno.EROFS: ReadOnlyZpool,
    _errno.EAGAIN: Suspended,
}


def from_errno(code: int, dataset: str, call: str) -> ZfsError:
    """The exception that fits *code*, as a value to be raised."""
    return _BY_ERRNO.get(code, ZfsError)(dataset, code, call)
