# SPDX-License-Identifier: BSD-2-Clause
"""The only importer of libzfs_core: async calls, exceptions with data.

Every call runs in a thread, because it may wait for a transaction group and
must not block the event loop.  A call in the kernel cannot be cancelled: if the
waiting task is cancelled, it awaits the end of the call first.  So after a
cancellation nothing is still in progress.

libzfs_core is imported at the first call, so that this module can be imported
where neither pyzfs nor the kernel module is installed.
"""

import asyncio
import contextlib
import errno
import importlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import errors, text, threads

LOG = logging.getLogger("qubes.storage.zfs")
# names on a disk may be any bytes: no handler gets them unchanged
LOG.addFilter(text.printable_record)

T = TypeVar("T")
Value = str | int | bool | None

#: word of zfs(8) -> index number, which libzfs_core takes for native properties
#: (zfs_prop.c; each was created and read back on 2.3.9)
_NUMBERS: Mapping[tuple[str, Value], int] = {
    ("volmode", "dev"): 2,
    ("snapdev", "hidden"): 0,
    ("canmount", "off"): 0,
}

#: names of datasets and snapshots, as this package makes or accepts them
_NAME = re.compile(
    r"(?!.{256})[A-Za-z][A-Za-z0-9_.-]*"
    r"(/(?!\.\.?(/|@|\Z))[A-Za-z0-9_.:-]+)*(@[A-Za-z0-9_.:-]+)?\Z"
)

_SIGNALS = signal.valid_signals()


async def in_thread(
    subject: str,
    function: Callable[..., T],
    *args: object,
    stop: threading.Event | None = None,
    reads: bool = False,
) -> T:
    """Run *function* in a thread; if cancelled, wait for its end first.

    :param subject: a dataset; the threads of its zpool are used
    :param stop: set when cancelled; the function checks it
    :param reads: the function is a program that only reads
    """
    loop = asyncio.get_running_loop()
    own = threads.for_zpool_of(subject)
    executor = own.readers if reads else own.workers
    future = loop.run_in_executor(executor, function, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        await ended(future)
        raise


async def ended(future: asyncio.Future[T]) -> None:
    """Wait until *future* is done, also if cancelled; ignore its result."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()


def library() -> Any:
    """Return the module libzfs_core.

    :raises NoModule: if it is not installed
    """
    try:
        return importlib.import_module("libzfs_core")
    except (ImportError, OSError) as exc:
        raise errors.NoModule("libzfs_core", call="import") from exc


def check_name(name: str, call: str) -> None:
    """Refuse a name that ZFS does not have: channel programs accept any text.

    Names that a person enters are checked earlier, with better messages.  This
    is for names from files and disks.

    :param call: for the message
    :raises ZfsError: EINVAL
    """
    if not _NAME.match(name):
        raise errors.ZfsError(name, errno.EINVAL, call)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Block signals in this thread.

    A signal to a thread in a channel program cancels the program, even between
    two of its changes (zcp_lua_counthook(), zcp_eval_sig()).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def call(name: str, subject: str, /, *args: object) -> Any:
    """Call ``lzc_<name>``.

    :param subject: the dataset that an exception names
    :raises ZfsError: if ZFS refuses
    """
    check_name(subject, name)
    lzc = library()
    exceptions = lzc.exceptions
    try:
        with _undisturbed():
            return getattr(lzc, "lzc_" + name)(*args)
    except exceptions.ZFSInitializationFailed as exc:
        raise errors.NoModule(subject, exc.errno, name) from exc
    except exceptions.PoolNotFound as exc:
        raise errors.PoolAbsent(subject.partition("/")[0], 0, name) from exc
    except exceptions.ZFSError as exc:
        # where a program failed; for a maintainer
        details = getattr(exc, "details", None)
        if details:
            LOG.error("%s of %s: %r", name, subject, details)
        raise errors.from_errno(exc.errno or 0, subject, name) from exc


def _properties(
    properties: Mapping[str, Value],
) -> dict[bytes, bytes | int | None]:
    """Return *properties* as libzfs_core takes them."""
    numbered = {
        name: _NUMBERS.get((name, value), value)
        for name, value in properties.items()
    }
    return {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in numbered.items()
    }


async def create_filesystem(
    dataset: str, properties: Mapping[str, Value], mountable: bool = True
) -> None:
    """Create a filesystem that is not mounted.

    :param mountable: whether its place would have it mounted; else canmount
        need not be set, which saves a transaction group
    :raises Exists: if there is a dataset of that name
    """
    unmounted = {"canmount": "off"} if mountable else {}
    own = _properties({**unmounted, **properties})
    await in_thread(
        dataset, call, "create", dataset, dataset.encode(), "zfs", own
    )


async def create_volume(
    dataset: str, size: int, blocksize: int, properties: Mapping[str, Value]
) -> None:
    """Create a sparse zvol of *size* bytes.

    ZFS creates the dataset and sets the properties in two transaction groups,
    so after a crash it may exist without *properties*.

    :raises Exists: if there is a dataset of that name
    """
    own = _properties(
        {"volsize": size, "volblocksize": blocksize, **properties}
    )
    await in_thread(
        dataset, call, "create", dataset, dataset.encode(), "zvol", own
    )


async def clone(
    dataset: str, origin: str, properties: Mapping[str, Value]
) -> None:
    """Clone the snapshot *origin*; *properties* as in create_volume().

    :raises Exists: if there is a dataset of that name
    """
    await in_thread(
        dataset,
        call,
        "clone",
        dataset,
        dataset.encode(),
        origin.encode(),
        _properties(properties),
    )


async def destroy(dataset: str) -> None:
    """Destroy a dataset that has neither children nor snapshots.

    :raises NotFound: if it does not exist
    :raises Busy: if it has some, or is open
    """
    await in_thread(dataset, call, "destroy", dataset, dataset.encode())


async def destroy_bookmarks(bookmarks: Iterable[str]) -> None:
    """Destroy bookmarks of datasets in one zpool; *bookmarks* may be empty."""
    names = [text.to_disk(name) for name in bookmarks]
    if names:
        dataset = text.from_disk(names[0].partition(b"#")[0])
        await in_thread(dataset, call, "destroy_bookmarks", dataset, names)


async def destroy_bookmarks_of(dataset: str) -> bool:
    """Destroy all bookmarks of a dataset; return whether it had any."""
    bookmarks = await in_thread(
        dataset, call, "get_bookmarks", dataset, dataset.encode(), [b"guid"]
    )
    await destroy_bookmarks(
        f"{dataset}#{text.from_disk(name)}" for name in bookmarks
    )
    return bool(bookmarks)


async def sync(dataset: str) -> None:
    """Wait until all data written to the zpool is on disk.

    It is in a transaction group that has ended.

    :raises PoolAbsent: if it is not imported
    """
    zpool = dataset.partition("/")[0]
    await in_thread(dataset, call, "sync", dataset, zpool.encode())


def create_root(
    dataset: str, properties: Mapping[str, Value], key: bytes
) -> None:
    """Create a filesystem that is an encryption root, and load its key.

    This and the next two functions block the calling thread: they are for a
    process that deals with one key and ends.

    :param properties: among them encryption, and the format of the key
    :param key: the wrapping key, 32 bytes
    :raises Exists: if there is a dataset of that name
    """
    own = _properties({"canmount": "off", **properties})
    call("create", dataset, dataset.encode(), "zfs", own, key)


def load_key(root: str, key: bytes, check_only: bool = False) -> None:
    """Load the wrapping key of an encryption root.

    :param check_only: only check whether it is the right key, loaded or not
    :raises Locked: if it is the wrong one
    :raises Exists: if it is loaded already
    """
    call("load_key", root, root.encode(), check_only, key)


def change_key(root: str, properties: Mapping[str, Value], key: bytes) -> None:
    """Replace the wrapping key of a root whose key is loaded.

    :raises Locked: if the present one is not loaded
    """
    own = _properties(properties)
    call("change_key", root, root.encode(), "new_key", own, key)


async def unload_key(root: str) -> None:
    """Unload the key of an encryption root.

    :raises Busy: while anything that it encrypts is open
    :raises Locked: if it is not loaded
    """
    await in_thread(root, call, "unload_key", root, root.encode())


def module_version() -> str | None:
    """Return the version of the zfs module; None if it is not loaded."""
    try:
        return Path("/sys/module/zfs/version").read_text("ascii").strip()
    except OSError:
        return None


def version_numbers() -> tuple[int, ...] | None:
    """Return the first three numbers of module_version()."""
    version = module_version()
    if version is None:
        return None
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
