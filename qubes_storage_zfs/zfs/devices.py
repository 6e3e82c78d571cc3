# SPDX-License-Identifier: BSD-2-Clause
"""Wait for the device nodes of zvols, verify them, and list their holders.

The kernel creates /dev/zdN before lzc_create() and lzc_clone() return.  udev
creates the link /dev/zvol/<dataset> later, and the link may lead to another
zvol for a while.  So wait_for_link() waits for the link with inotify, and asks
the node for its name (ioctl BLKZNAME) before it returns the link.
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

from . import commands, lzc, runtime, sysfs, threads
from .errors import Busy, CommandFailed, NoDevice, busy

LOG = logging.getLogger("qubes.storage.zfs")

T = TypeVar("T")

ZVOL_DIR = "/dev/zvol"
#: _IOR(0x12, 125, char[256]) of include/sys/fs/zfs.h
BLKZNAME = 0x8100127D
#: an errno for use inside the kernel only (include/linux/errno.h)
ERESTARTSYS = 512
#: attempts to open a node, one second each
OPEN_TRIES = 30
#: seconds until a link counts as missing
LINK_LIMIT = 30.0
#: seconds until this process asks udev for a missing link; the pause doubles
NUDGE_AFTER = 5.0
#: seconds; a process that has a node open for longer does not just probe it
PROBE_LIMIT = 2.0
#: seconds for which an operation on a busy zvol is retried
BUSY_LIMIT = 6.0

#: nodes that VerifiedNodes remembers
SEEN_LIMIT = 4096

_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_SYNC_AND_WAIT = 1 | 2 | 4  # _WAIT_BEFORE | _WRITE | _WAIT_AFTER
_IN_EVENTS = 0x100 | 0x80 | 0x4  # IN_CREATE | IN_MOVED_TO | IN_ATTRIB

_libc = ctypes.CDLL(None, use_errno=True)


def link(dataset: str) -> str:
    """Return the path of udev's link to the device node of *dataset*."""
    return f"{ZVOL_DIR}/{dataset}"


def dataset_of(path: str) -> str | None:
    """Return the dataset that link() maps to *path*; None if there is none."""
    if not path.startswith(ZVOL_DIR + "/"):
        return None
    return path[len(ZVOL_DIR) + 1 :]


def open_node(path: str, flags: int) -> int:
    """Open a block device; retry while ZFS waits for a lock.

    zvol_open() (zvol_os.c) returns ERESTARTSYS to the first opener of a zvol if
    it does not get a lock within a second (zvol_open_timeout_ms), for example
    while a zpool is created or imported.

    :param flags: as of os.open(); O_CLOEXEC is added
    :raises OSError: if the device cannot be opened
    """
    for _ in range(OPEN_TRIES - 1):
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno != ERESTARTSYS:
                raise
    return os.open(path, flags | os.O_CLOEXEC)


def size_of(path: str) -> int:
    """Return the size of a device in bytes, without opening it.

    :raises OSError: if the device does not exist
    """
    return int(_attribute(path, "size")) * 512


def _attribute(path: str, name: str) -> str:
    """Return a sysfs attribute of the block device that *path* leads to."""
    node = os.path.basename(os.path.realpath(path))
    return Path("/sys/class/block", node, name).read_text("ascii")


def _name_of_open(fd: int) -> str | None:
    buffer = bytearray(256)
    try:
        fcntl.ioctl(fd, BLKZNAME, buffer, True)
        return bytes(buffer).split(b"\0")[0].decode()
    except (OSError, UnicodeDecodeError):
        return None


def name_of_node(path: str) -> str | None:
    """Return the dataset of a block device; None if it is not a zvol.

    This opens the device read-only, because closing a writable descriptor
    makes udev probe the device.
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
    """Return the nodes of all zvols, those without a link first.

    Nodes of silent zpools are left out: opening one would block.
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
    return commands.is_suspended(zpool) or not own.responds


def _node_of(dataset: str) -> str | None:
    """Return the node /dev/zdN of *dataset* without udev: ask all zvols."""
    for node in _nodes():
        if name_of_node(node) == dataset:
            return node
    return None


async def _nudge(dataset: str, opened: contextlib.ExitStack) -> None:
    """Have udev probe a zvol again, as ``udevadm trigger`` does.

    If the zvol has no node, have ZFS create one.

    :param opened: keeps the zvol open.  Only the first opener of a zvol gets
        ERESTARTSYS (see open_node()), so udev's zvol_id does not get it
    """

    def announce(node: str) -> None:
        with contextlib.suppress(OSError):
            fd = open_node(node, os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, fd)
            Path(f"/sys/block/{node[5:]}/uevent").write_text("change")

    node = await lzc.in_thread(dataset, _node_of, dataset)
    if node is not None:
        LOG.warning(
            "udev made no link for %s yet; triggering it again", dataset
        )
        await lzc.in_thread(dataset, announce, node)
        return
    LOG.warning("%s has no device node yet; requesting one", dataset)
    with contextlib.suppress(CommandFailed):
        await commands.remake_node(dataset)


class _Watch:
    """An inotify watch of all folders above a path, for one wait_for_link().

    Only the thread of the event loop may touch it.
    """

    def __init__(self, path: str) -> None:
        """Create the watch, without watching anything yet."""
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
        """Watch every folder above the path that exists now."""
        self._event.clear()
        folder = os.path.dirname(self._path)
        while folder.startswith("/dev"):
            # adding a watch that exists changes nothing
            _libc.inotify_add_watch(
                self._fd, folder.encode(), ctypes.c_uint32(_IN_EVENTS)
            )
            folder = os.path.dirname(folder)

    async def wait(self, seconds: float) -> None:
        """Wait for an event since arm(), for *seconds* at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)

    def close(self) -> None:
        """Remove the watch."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)


#: path of a node, and the sequence number of its disk (diskseq), which the
#: kernel never assigns twice
_Node = tuple[str, str]


def _node_behind(path: str) -> _Node | None:
    """Return the node that *path* leads to; None if it does not exist."""
    node = os.path.realpath(path)
    try:
        return node, _attribute(node, "diskseq")
    except OSError:
        return None


class VerifiedNodes:
    """A cache of verified nodes, by dataset.

    The runtime creates one instance for the process.  All threads may use it.
    """

    def __init__(self) -> None:
        """Create an empty cache."""
        self._nodes: dict[str, _Node] = {}

    def has(self, dataset: str, node: _Node) -> bool:
        """Return whether *node* was verified as the node of *dataset*."""
        return self._nodes.get(dataset) == node

    def add(self, dataset: str, node: _Node) -> None:
        """Record that *node* is the node of *dataset*."""
        if len(self._nodes) >= SEEN_LIMIT:
            self._nodes.clear()
        self._nodes[dataset] = node


def _leads_to(path: str, dataset: str) -> bool:
    """Return whether *path* leads to the node of *dataset*.

    Opens the zvol to ask for its name, once for each node of a dataset.
    """
    verified, node = runtime.of(VerifiedNodes), _node_behind(path)
    if node is not None and verified.has(dataset, node):
        return True
    if name_of_node(path) != dataset:
        return False
    if node is not None and _node_behind(path) == node:
        verified.add(dataset, node)
    return True


async def wait_for_link(dataset: str) -> str:
    """Wait until the link of *dataset* leads to its node; return the link.

    :raises NoDevice: if it does not do so within :py:data:`LINK_LIMIT` seconds
    """
    path = link(dataset)
    if await lzc.in_thread(dataset, _leads_to, path, dataset):
        return path
    loop = asyncio.get_running_loop()
    start = loop.time()
    nudge_at = NUDGE_AFTER
    with contextlib.ExitStack() as opened:
        watch = _Watch(path)
        opened.callback(watch.close)
        while True:
            # before the check, so that the last check is after the last wait
            passed = loop.time() - start
            watch.arm()
            if await lzc.in_thread(dataset, _leads_to, path, dataset):
                return path
            if passed >= LINK_LIMIT:
                raise NoDevice(dataset, errno.ENODEV, "wait for the device of")
            if passed >= nudge_at:
                nudge_at = 2 * passed
                await _nudge(dataset, opened)
            await watch.wait(1.0)


@contextlib.asynccontextmanager
async def flushed(dataset: str) -> AsyncIterator[None]:
    """Write out dom0's page cache of a zvol, if the zvol has a node.

    A snapshot does not contain buffered writes that have not reached ZFS.
    Data that has reached ZFS is in the transaction group of the snapshot or in
    an earlier one.  fsync() would also write it to the intent log, and opening
    and closing that takes four transaction groups (counted on 2.4.4).

    The zvol stays open inside the context.  Otherwise ZFS would open it for
    each snapshot that a program lists, and for each property.

    :raises OSError: if the data could not be written
    """
    opened = contextlib.ExitStack()
    try:
        await lzc.in_thread(dataset, _flush, dataset, opened)
        yield
    finally:
        await lzc.in_thread(dataset, opened.close)


def _flush(dataset: str, opened: contextlib.ExitStack) -> None:
    """Write out the page cache; keep the zvol open until *opened* is closed."""
    try:
        fd = open_node(link(dataset), os.O_RDONLY)
    except OSError as exc:
        # EACCES: without its key, a zvol cannot be opened, and when it was
        # last closed, the kernel wrote out its page cache
        if exc.errno in (
            *(errno.ENOENT, errno.ENXIO, errno.ENODEV),
            errno.EACCES,
        ):
            return
        raise
    opened.callback(os.close, fd)
    if _name_of_open(fd) == dataset:
        write_out(fd)


def write_out(
    fd: int, offset: int = 0, length: int = 0, wait: bool = True
) -> None:
    """Write out the page cache of a part of a file; see flushed().

    :param fd: a file descriptor
    :param offset: bytes
    :param length: bytes; 0: up to the end of the file
    :param wait: whether to wait until the data is written, or only to start
    :raises OSError: if the data could not be written
    """
    part = ctypes.c_int64(offset), ctypes.c_int64(length)
    flags = ctypes.c_uint(_SYNC_AND_WAIT if wait else _SYNC_WRITE)
    if _libc.sync_file_range(fd, *part, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def holders(dataset: str) -> tuple[str, ...]:
    """Return descriptions of the processes and devices that hold *dataset*."""
    linked = os.path.realpath(link(dataset))
    node = linked if name_of_node(linked) == dataset else _node_of(dataset)
    if node is None:
        return ()
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
    yield from sysfs.holders(Path("/sys/block", os.path.basename(node)))
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if os.path.realpath(loop.read_text().strip()) == node:
                yield f"loop device {loop.parent.parent.name}"


def _xen_backends(node: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        number = os.stat(node).st_rdev
        own = f"{os.major(number)}:{os.minor(number)}"
        for backend, used in sysfs.attached():
            if used == own:
                domain = backend.split("-")[1]
                yield f"the running qube with Xen domain id {domain}"


async def retry_busy(
    dataset: str,
    action: Callable[[], Awaitable[T]],
    limit: float = BUSY_LIMIT,
) -> T:
    """Await *action* repeatedly until it does not raise Busy.

    udev opens a node for a moment after each event, so a zvol is often busy for
    a short time.

    :param dataset: the zvol, or the dataset above several zvols
    :param limit: seconds
    :raises Busy: after *limit* seconds, with the holders
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    pause = 0.01
    while True:
        try:
            return await action()
        except Busy as exc:
            if loop.time() >= end:
                seen = await lzc.in_thread(exc.dataset, holders, exc.dataset)
                raise busy(exc, seen) from exc
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.25)


async def persistent_holders(dataset: str) -> tuple[str, ...]:
    """Return the holders that have a zvol open for longer than a probe.

    When a process closes a node that it wrote to, udev runs zvol_id, which
    opens the node for a moment.  qubesd does the same while it searches for
    the node of another zvol.
    """

    async def must_be_closed() -> None:
        if await lzc.in_thread(dataset, holders, dataset):
            raise Busy(dataset)

    try:
        await retry_busy(dataset, must_be_closed, PROBE_LIMIT)
    except Busy as exc:
        return exc.holders
    return ()
