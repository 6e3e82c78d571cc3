# SPDX-License-Identifier: BSD-2-Clause
"""Call libzfs_core from coroutines; raise exceptions that carry data.

Every call runs in a thread, because it may wait for a transaction group and
must not block the event loop.  A call in the kernel cannot be cancelled.  If
the waiting task is cancelled, it waits for the end of the call first, so no
call is in progress after a cancellation.

This is the only module that imports libzfs_core.  It does so at the first
call, so that it can be imported without pyzfs and the kernel module.
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
# names on a disk may contain any bytes, which no handler must get
LOG.addFilter(text.printable_record)

T = TypeVar("T")
Value = str | int | bool | None

#: property and value as of zfs(8) -> index number, which libzfs_core takes
#: (zfs_prop.c; each was set and read back on 2.3.9)
_NUMBERS: Mapping[tuple[str, Value], int] = {
    ("volmode", "dev"): 2,
    ("snapdev", "hidden"): 0,
    ("canmount", "off"): 0,
}

#: names of datasets and snapshots that this package makes or accepts
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

    :param subject: a dataset; the function runs in a thread of its zpool
    :param stop: event that is set when cancelled; the function must check it
    :param reads: whether the function runs a read-only channel program
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
    """Wait until *future* is done, even if cancelled; ignore its result."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()


def library() -> Any:
    """Return the Python module libzfs_core.

    :raises NoModule: if it is not installed
    """
    try:
        return importlib.import_module("libzfs_core")
    except (ImportError, OSError) as exc:
        raise errors.NoModule("libzfs_core", call="import") from exc


def check_name(name: str, call: str) -> None:
    """Check the name of a dataset or snapshot, which may be from a disk.

    Channel programs accept any text as a name.  A name that the user enters is
    checked earlier, with better messages.

    :param call: the operation to name in the failure
    :raises ZfsError: EINVAL, if ZFS does not allow the name
    """
    if not _NAME.match(name):
        raise errors.ZfsError(name, errno.EINVAL, call)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Block signals in this thread.

    A signal to a thread that runs a channel program cancels the program, also
    between two of its changes (zcp_lua_counthook(), zcp_eval_sig()).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def call(name: str, subject: str, /, *args: object) -> Any:
    """Call the function ``lzc_<name>`` of libzfs_core.

    :param subject: the dataset to name in a failure
    :raises NoModule: if the kernel module is not loaded
    :raises PoolAbsent: if the zpool is not imported
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
        # the line where a channel program failed
        details = getattr(exc, "details", None)
        if details:
            LOG.error("%s of %s failed: %r", name, subject, details)
        raise errors.from_errno(exc.errno or 0, subject, name) from exc


def _properties(
    properties: Mapping[str, Value],
) -> dict[bytes, bytes | int | None]:
    """Return *properties* in the form that libzfs_core takes."""
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
    """Create a filesystem that is never mounted.

    :param mountable: whether ZFS would mount it; if not, canmount=off is not
        set, which saves a transaction group
    :raises Exists: if a dataset of that name exists
    """
    unmounted = {"canmount": "off"} if mountable else {}
    own = _properties({**unmounted, **properties})
    await in_thread(
        dataset, call, "create", dataset, dataset.encode(), "zfs", own
    )


async def create_volume(
    dataset: str, size: int, blocksize: int, properties: Mapping[str, Value]
) -> None:
    """Create a sparse zvol.

    ZFS creates the dataset and sets the properties in two transaction groups,
    so after a crash the zvol may exist without *properties*.

    :param size: bytes
    :param blocksize: bytes
    :raises Exists: if a dataset of that name exists
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
    """Clone the snapshot *origin*; set *properties* as create_volume() does.

    :raises Exists: if a dataset of that name exists
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
    :raises Busy: if it has children or snapshots, or is open
    """
    await in_thread(dataset, call, "destroy", dataset, dataset.encode())


async def destroy_bookmarks(bookmarks: Iterable[str]) -> None:
    """Destroy bookmarks, which may be none, of datasets in one zpool."""
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
    """Wait until all data written to the zpool of *dataset* is on disk.

    The data is then in a completed transaction group.

    :raises PoolAbsent: if the zpool is not imported
    """
    zpool = dataset.partition("/")[0]
    await in_thread(dataset, call, "sync", dataset, zpool.encode())


def create_root(
    dataset: str, properties: Mapping[str, Value], key: bytes
) -> None:
    """Create a filesystem that is an encryption root, and load its key.

    This and the next two functions block the calling thread, because only the
    keyholder calls them.

    :param properties: with encryption and the properties of the key
    :param key: the wrapping key, 32 bytes
    :raises Exists: if a dataset of that name exists
    """
    own = _properties({"canmount": "off", **properties})
    call("create", dataset, dataset.encode(), "zfs", own, key)


def load_key(root: str, key: bytes, check_only: bool = False) -> None:
    """Load the wrapping key of an encryption root.

    :param key: 32 bytes
    :param check_only: check whether the key is correct, without loading it
    :raises Locked: if the key is wrong
    :raises Exists: if a key is loaded already
    """
    call("load_key", root, root.encode(), check_only, key)


def change_key(root: str, properties: Mapping[str, Value], key: bytes) -> None:
    """Replace the wrapping key of an encryption root whose key is loaded.

    :param properties: of the new key
    :param key: the new wrapping key, 32 bytes
    :raises Locked: if the present key is not loaded
    """
    own = _properties(properties)
    call("change_key", root, root.encode(), "new_key", own, key)


async def unload_key(root: str) -> None:
    """Unload the key of an encryption root.

    :raises Busy: if a dataset that it encrypts is open
    :raises Locked: if the key is not loaded
    """
    await in_thread(root, call, "unload_key", root, root.encode())


def module_version() -> str | None:
    """Return the version of the zfs module; None if it is not loaded."""
    try:
        return Path("/sys/module/zfs/version").read_text("ascii").strip()
    except OSError:
        return None


def version_numbers() -> tuple[int, ...] | None:
    """Return the first three numbers of module_version(), if it is loaded."""
    version = module_version()
    if version is None:
        return None
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
