"""Device nodes: from a dataset to its node, verified; and who holds it.

The kernel makes /dev/zdN before lzc_create() and lzc_clone() return; the link
/dev/zvol/<dataset> is udev's and comes later, or points to another zvol for a
while.  So the link is waited for (inotify, no polling) and what it points to
is asked for its name (BLKZNAME) before anyone is given it.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from . import commands, lzc, threads
from .errors import Busy, CommandFailed, NoDevice, busy

LOG = logging.getLogger("qubes.storage.zfs")

T = TypeVar("T")

ZVOL_DIR = "/dev/zvol"
#: _IOR(0x12, 125, char[256]) of include/sys/fs/zfs.h
BLKZNAME = 0x8100127D
#: errno of the kernel's own, include/linux/errno.h
ERESTARTSYS = 512
#: a second each
OPEN_TRIES = 30
#: seconds until a link is declared missing
LINK_LIMIT = 30.0
#: seconds after which udev is asked again for a link that did not come; then
#: again after twice as many
NUDGE_AFTER = 5.0
#: seconds after which whoever has a node open does not only look at it
GLANCE_LIMIT = 2.0
#: seconds for which "busy" is put down to udev's probing and tried again
BUSY_LIMIT = 6.0

#: nodes that are remembered
SEEN_LIMIT = 4096

_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_SYNC_AND_WAIT = 1 | 2 | 4  # _WAIT_BEFORE | _WRITE | _WAIT_AFTER
_IN_EVENTS = 0x100 | 0x80 | 0x4  # IN_CREATE | IN_MOVED_TO | IN_ATTRIB

_libc = ctypes.CDLL(None, use_errno=True)


def link(dataset: str) -> str:
    """Where udev puts the node of *dataset*."""
    return f"{ZVOL_DIR}/{dataset}"


def dataset_of(path: str) -> str | None:
    """The dataset that link() would give *path* for; None if none."""
    if not path.startswith(ZVOL_DIR + "/"):
        return None
    return path[len(ZVOL_DIR) + 1 :]


def open_node(path: str, flags: int) -> int:
    """Open a block device, as os.open() does.

    OpenZFS answers the first opener of a zvol with a code that is none of
    userspace's if it did not get a lock within a second, as while a zpool is
    created or imported (zvol_open() in zvol_os.c, zvol_open_timeout_ms).
    That is no refusal, so it is tried again.

    :raises OSError: if it cannot be opened
    """
    for _ in range(OPEN_TRIES - 1):
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno != ERESTARTSYS:
                raise
    return os.open(path, flags | os.O_CLOEXEC)


def size_of(path: str) -> int:
    """Bytes, as the kernel knows it; the device is not opened.

    :raises OSError: if it is not there
    """
    return int(_told_of(path, "size")) * 512


def _told_of(path: str, what: str) -> str:
    """What the kernel tells of the block device that *path* leads to."""
    node = os.path.basename(os.path.realpath(path))
    return Path("/sys/class/block", node, what).read_text("ascii")


def _name_of_open(fd: int) -> str | None:
    buffer = bytearray(256)
    try:
        fcntl.ioctl(fd, BLKZNAME, buffer, True)
        return bytes(buffer).split(b"\0")[0].decode()
    except (OSError, UnicodeDecodeError):
        return None


def name_of_node(path: str) -> str | None:
    """The dataset behind a block device, None if it is none of ZFS'.

    Opened read-only: closing a writable descriptor makes udev probe again.
    """
    try:
        fd = open_node(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _name_of_open(fd)
    finally:
        os.close(fd)


def _nodes() -> list[str]:
    """Return the nodes of zvols, those first that no link of udev's leads to.

    Opening one in a zpool that does not answer would wait for that zpool, so
    these are not among them.
    """
    linked = {}
    for folder, _, names in os.walk(ZVOL_DIR):
        for name in names:
            path = os.path.join(folder, name)
            linked[os.path.realpath(path)] = dataset_of(path) or ""
    zpools = {dataset.partition("/")[0] for dataset in linked.values()}
    silent = {zpool for zpool in zpools if _is_silent(zpool)}
    nodes = [f"/dev/{block.name}" for block in Path("/sys/block").glob("zd*")]
    return [
        node
        for node in sorted(nodes, key=linked.__contains__)
        if linked.get(node, "").partition("/")[0] not in silent
    ]


def _is_silent(zpool: str) -> bool:
    own = threads.for_zpool_of(zpool)
    return commands.is_suspended(zpool) or not own.answers


def _node_of(dataset: str) -> str | None:
    """Find /dev/zdN without udev, by asking zvols for their names."""
    for node in _nodes():
        if name_of_node(node) == dataset:
            return node
    return None


async def _nudge(dataset: str, held: contextlib.ExitStack) -> None:
    """Have udev look at the zvol once more (as ``udevadm trigger`` does).

    Until *held* is closed the zvol is open: only the first opener may be
    turned away as open_node() tells, so that udev's program is not.
    If ZFS lost its node, have ZFS make one: see Container.take().
    """

    def announce(node: str) -> None:
        with contextlib.suppress(OSError):
            fd = open_node(node, os.O_RDONLY | os.O_NONBLOCK)
            held.callback(os.close, fd)
            Path(f"/sys/block/{node[5:]}/uevent").write_text("change")

    node = await lzc.in_thread(dataset, _node_of, dataset)
    if node is not None:
        LOG.warning("udev made no link for %s yet: asking again", dataset)
        await lzc.in_thread(dataset, announce, node)
        return
    LOG.warning("%s has no device node yet: asking for one", dataset)
    with contextlib.suppress(CommandFailed):
        await commands.remake_node(dataset)


class _Watch:
    """Tells when something happens on the way to a path (inotify)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._event = asyncio.Event()
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._drain)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        self._event.set()

    def arm(self) -> None:
        """Watch every existing folder above the path, from now on."""
        self._event.clear()
        folder = os.path.dirname(self._path)
        while folder.startswith("/dev"):
            # adding a watch that is there already changes nothing
            _libc.inotify_add_watch(
                self._fd, folder.encode(), ctypes.c_uint32(_IN_EVENTS)
            )
            folder = os.path.dirname(folder)

    async def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)


#: dataset -> its node, and which one of that name since the machine booted
_seen: dict[str, tuple[str, str]] = {}


def _which(path: str) -> tuple[str, str] | None:
    """The node that *path* leads to, and the number that the kernel gives to
    each disk there ever is, and to none twice (diskseq)."""
    node = os.path.realpath(path)
    try:
        return node, _told_of(node, "diskseq")
    except OSError:
        return None


def _leads_to(path: str, dataset: str) -> bool:
    """Whether *path* leads to the node of *dataset*.

    Asked of the zvol itself, which must be opened for it; once for each node
    that a dataset has.
    """
    which = _which(path)
    if which is not None and _seen.get(dataset) == which:
        return True
    if name_of_node(path) != dataset:
        return False
    if which is not None and _which(path) == which:
        if len(_seen) >= SEEN_LIMIT:
            _seen.clear()
        _seen[dataset] = which
    return True


async def wait_for_link(dataset: str) -> str:
    """Wait until the link of *dataset* leads to its node; give the link.

    :raises NoDevice: if it does not within :py:data:`LINK_LIMIT` seconds
    """
    path = link(dataset)
    if await lzc.in_thread(dataset, _leads_to, path, dataset):
        return path
    loop = asyncio.get_running_loop()
    begin = loop.time()
    nudge_at = NUDGE_AFTER
    with contextlib.ExitStack() as held:
        watch = _Watch(path)
        held.callback(watch.close)
        while True:
            # before the look, so that the last one is after the last wait
            passed = loop.time() - begin
            watch.arm()
            if await lzc.in_thread(dataset, _leads_to, path, dataset):
                return path
            if passed >= LINK_LIMIT:
                raise NoDevice(dataset, errno.ENODEV, "wait for the device of")
            if passed >= nudge_at:
                nudge_at = 2 * passed
                await _nudge(dataset, held)
            await watch.wait(1.0)


@contextlib.asynccontextmanager
async def flushed(dataset: str) -> AsyncIterator[None]:
    """Write what dom0's page cache holds of the zvol, if it has a node.

    A snapshot does not contain buffered writes that ZFS was not given.  What
    it was given is in the transaction group that the snapshot is in, or an
    earlier one; fsync() would have it in the intent log as well, which takes
    four transaction groups to open and close (counted on 2.4.4).

    The zvol is kept open within this: else ZFS opens it anew for each of its
    snapshots that a program lists, and for each of its properties.

    :raises OSError: if the data could not be written
    """
    held = contextlib.ExitStack()
    try:
        await lzc.in_thread(dataset, _flush, dataset, held)
        yield
    finally:
        await lzc.in_thread(dataset, held.close)


def _flush(dataset: str, held: contextlib.ExitStack) -> None:
    """Until *held* is closed the zvol is open, if it has a node."""
    try:
        fd = open_node(link(dataset), os.O_RDONLY)
    except OSError as exc:
        # without its key it cannot have been opened since it was closed, and
        # closing it wrote what there was
        if exc.errno in (
            *(errno.ENOENT, errno.ENXIO, errno.ENODEV),
            errno.EACCES,
        ):
            return
        raise
    held.callback(os.close, fd)
    if _name_of_open(fd) == dataset:
        write_out(fd)


def write_out(
    fd: int, offset: int = 0, length: int = 0, wait: bool = True
) -> None:
    """Write what the page cache holds of *length* bytes, 0 for all there are
    from *offset* on; see flushed().

    :param wait: until it is written; else it is only begun
    :raises OSError: if it could not be written
    """
    part = ctypes.c_int64(offset), ctypes.c_int64(length)
    how = ctypes.c_uint(_SYNC_AND_WAIT if wait else _SYNC_WRITE)
    if _libc.sync_file_range(fd, *part, how):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def holders(dataset: str) -> tuple[str, ...]:
    """Who holds the zvol's node open, in words; empty if it has none."""
    node = os.path.realpath(link(dataset))
    if name_of_node(node) != dataset:
        found = _node_of(dataset)
        if found is None:
            return ()
        node = found
    return tuple(
        [*_processes(node), *_block_holders(node), *_xen_backends(node)]
    )


def _processes(node: str) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in os.listdir(process / "fd"):
                if os.readlink(process / "fd" / fd) == node:
                    name = (process / "comm").read_text().strip()
                    if not re.fullmatch(r"\(udev-worker\)|systemd-udevd", name):
                        yield f"process {process.name} ({name})"
                    break


def _block_holders(node: str) -> Iterator[str]:
    block = Path("/sys/block", os.path.basename(node))
    with contextlib.suppress(OSError):
        for holder in sorted(os.listdir(block / "holders")):
            name = Path("/sys/block", holder, "dm/name")
            yield name.read_text().strip() if name.exists() else holder
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if os.path.realpath(loop.read_text().strip()) == node:
                yield f"loop device {loop.parent.parent.name}"


def _xen_backends(node: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        number = os.stat(node).st_rdev
        wanted = f"{os.major(number):x}:{os.minor(number):x}"
        for device in Path("/sys/bus/xen-backend/devices").glob("vbd-*"):
            physical = device / "physical_device"
            if physical.exists() and physical.read_text().strip() == wanted:
                domain = device.name.split("-")[1]
                yield f"the running qube with Xen domain id {domain}"


async def retry_busy(
    dataset: str,
    action: Callable[[], Awaitable[T]],
    limit: float = BUSY_LIMIT,
) -> T:
    """Await *action* until it does not raise Busy any more.

    udev opens a node for a moment after each event, so busy is normal for
    some time; nothing of anybody else's waits meanwhile.

    :raises Busy: after *limit* seconds, naming the holders
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    pause = 0.01
    while True:
        try:
            return await action()
        except Busy as exc:
            if loop.time() >= end:
                who = await lzc.in_thread(exc.dataset, holders, exc.dataset)
                raise busy(exc, who) from exc
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.25)


async def lasting_holders(dataset: str) -> tuple[str, ...]:
    """Who holds the zvol's node open for longer than a glance.

    Whoever closes what it wrote makes udev run zvol_id, which opens the node
    for a moment, and so does qubesd while it looks for another zvol's.
    """

    async def look() -> None:
        if await lzc.in_thread(dataset, holders, dataset):
            raise Busy(dataset)

    try:
        await retry_busy(dataset, look, GLANCE_LIMIT)
    except Busy as exc:
        return exc.holders
    return ()
