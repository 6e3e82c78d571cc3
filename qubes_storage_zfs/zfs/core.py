"""The one door to libzfs_core: async calls, str names, exceptions with data.

Every call runs in a thread, so that a transaction group being waited for
never holds the event loop.  A call in the kernel cannot be cancelled: when
the waiting task is, the call's end is awaited first, so that "cancelled"
means "it is over", one way or the other.

libzfs_core is imported at the first call: this module imports where neither
pyzfs nor the kernel module is installed.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import importlib
import importlib.resources
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import errors

LOG = logging.getLogger("qubes.storage.zfs")

T = TypeVar("T")
Value = str | int | bool | None
#: what a channel program takes and gives
Data = Mapping[str, Any]

#: zfs_prop_t index values, which libzfs_core takes instead of words
#: (zfs_prop.c; each was created and read back on 2.3.9)
VOLMODE_DEV = 2
SNAPDEV_HIDDEN = 0
CANMOUNT_OFF = 0

#: names of datasets and snapshots, as this package makes or accepts them
_NAME = re.compile(
    r"(?!.{256})[A-Za-z][A-Za-z0-9_.-]*"
    r"(/(?!\.\.?(/|@|\Z))[A-Za-z0-9_.:-]+)*(@[A-Za-z0-9_.:-]+)?\Z"
)

MEMORY_LIMIT = 100 << 20  # bytes; the most ZFS allows, allocated as needed
INSTRUCTION_LIMIT = 100_000_000  # the most ZFS allows

_SIGNALS = signal.valid_signals()

_threads = concurrent.futures.ThreadPoolExecutor(16, "zfs")
#: A program that reads runs in its caller's thread, and the kernel does not
#: interrupt it: a processor is left for the event loop.  But never one thread
#: alone, for a zpool that hangs must not stop the reading of all others.
_readers = concurrent.futures.ThreadPoolExecutor(
    max(2, min(4, (os.cpu_count() or 1) - 1)), "zfs-read"
)


async def in_thread(
    function: Callable[..., T],
    *args: Any,
    stop: threading.Event | None = None,
    threads: concurrent.futures.Executor = _threads,
) -> T:
    """Run *function* in a thread; if cancelled, wait for its end first.

    :param stop: set when cancelled, for a function that looks at it
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(threads, function, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise


def _library() -> Any:
    try:
        return importlib.import_module("libzfs_core")
    except (ImportError, OSError) as exc:
        raise errors.NoModule("libzfs_core", call="import") from exc


def _check_name(name: str, what: str) -> None:
    """Stop what is no name: channel programs take anything.

    What a person gave was checked long before, with better words; this is
    for what is read from qubes.xml, of a pool that setup() did not see.
    """
    if not _NAME.match(name):
        raise errors.ZfsError(name, errno.EINVAL, what)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Have signals wait, in this thread.

    One that reaches a thread in a channel program cancels the program, even
    half way through what it changes (zcp_lua_counthook(), zcp_eval_sig()).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _call(what: str, subject: str, *args: Any) -> Any:
    """Call ``lzc_<what>``; *subject* is what an exception will name."""
    _check_name(subject, what)
    library = _library()
    exceptions = library.exceptions
    try:
        with _undisturbed():
            return getattr(library, "lzc_" + what)(*args)
    except exceptions.ZFSInitializationFailed as exc:
        raise errors.NoModule(subject, exc.errno, what) from exc
    except exceptions.PoolNotFound as exc:
        raise errors.PoolAbsent(subject.partition("/")[0], 0, what) from exc
    except exceptions.ZFSError as exc:
        # a program that failed says where, which only a maintainer reads
        details = getattr(exc, "details", None)
        if details:
            LOG.error("%s of %s: %s", what, subject, _decode(details))
        raise errors.from_errno(exc.errno or 0, subject, what) from exc


def _encode(value: Any) -> Any:
    """str to bytes and int to int64, which is all that programs take."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return _library().ctypes.int64_t(value)
    if isinstance(value, Mapping):
        return {key.encode(): _encode(item) for key, item in value.items()}
    return {
        str(number).encode(): _encode(item)
        for number, item in enumerate(value, 1)
    }


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, dict):
        return {_decode(key): _decode(item) for key, item in value.items()}
    return value


def _programs() -> dict[str, bytes]:
    """Texts of the channel programs; constant, names are arguments."""
    folder = importlib.resources.files(__package__) / "programs"
    texts = {
        file.name.removesuffix(".lua"): file.read_bytes()
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }
    common = texts.pop("common")
    return {name: common + text for name, text in texts.items()}


#: all of one version, even if the package is upgraded while qubesd runs
_PROGRAMS = _programs()


def _run(name: str, dataset: str, arguments: Data, sync: bool) -> Any:
    what = "channel_program" if sync else "channel_program_nosync"
    _check_name(dataset, what)
    zpool = dataset.partition("/")[0]
    result = _call(
        what,
        dataset,
        zpool.encode(),
        _PROGRAMS[name],
        INSTRUCTION_LIMIT,
        MEMORY_LIMIT,
        _encode(arguments),
    )
    result = _decode(result)
    if isinstance(result, dict) and "errno" in result:
        raise errors.from_errno(
            result["errno"], result.get("dataset", dataset), result["step"]
        )
    return result


def ask(name: str, dataset: str, arguments: Data) -> Any:
    """Run a read-only program now, in this thread.

    For properties that the API wants synchronously.  It waits for no
    transaction group and for no disk beyond cached metadata.

    :raises ZfsError: if it fails
    """
    return _run(name, dataset, arguments, sync=False)


async def read(name: str, dataset: str, arguments: Data) -> Any:
    """As :py:func:`ask`, in a thread."""
    return await in_thread(
        _run, name, dataset, arguments, False, threads=_readers
    )


async def change(
    name: str,
    dataset: str,
    arguments: Data,
    note: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Run a program that changes something: one transaction group.

    All it did is on disk when this returns; after a crash, all or nothing.

    :param note: is told the result even if the waiting task is cancelled
    :raises ZfsError: if the program refused (then nothing was changed,
        unless its header says otherwise) or failed
    """

    def run() -> Any:
        result = _run(name, dataset, arguments, True)
        note(result)
        return result

    return await in_thread(run)


def _properties(properties: Mapping[str, Value]) -> dict[bytes, Any]:
    """User properties are strings, native ones index numbers."""
    return {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in properties.items()
    }


async def create_filesystem(
    dataset: str, properties: Mapping[str, Value]
) -> None:
    """Create a filesystem that nothing mounts.

    :raises Exists: if there is a dataset of that name
    """
    given = _properties({"canmount": CANMOUNT_OFF, **properties})
    await in_thread(_call, "create", dataset, dataset.encode(), "zfs", given)


async def create_volume(
    dataset: str, size: int, blocksize: int, properties: Mapping[str, Value]
) -> None:
    """Create a sparse zvol of *size* bytes.

    Dataset and properties are two transaction groups (ZFS does them so):
    after a crash it may stand without *properties*.

    :raises Exists: if there is a dataset of that name
    """
    given = _properties(
        {"volsize": size, "volblocksize": blocksize, **properties}
    )
    await in_thread(_call, "create", dataset, dataset.encode(), "zvol", given)


async def clone(
    dataset: str, origin: str, properties: Mapping[str, Value]
) -> None:
    """Clone the snapshot *origin*; *properties* as in create_volume().

    :raises Exists: if there is a dataset of that name
    """
    await in_thread(
        _call,
        "clone",
        dataset,
        dataset.encode(),
        origin.encode(),
        _properties(properties),
    )


async def destroy(dataset: str) -> None:
    """Destroy a dataset that has neither children nor snapshots.

    :raises NotFound: if it is not there
    :raises Busy: if it has some, or something holds it open
    """
    await in_thread(_call, "destroy", dataset, dataset.encode())


def create_root(
    dataset: str, properties: Mapping[str, Value], key: bytes
) -> None:
    """Create a filesystem that is an encryption root, and load its key.

    This and the next two hold the calling thread: they are for a process
    that deals with one key and ends.

    :param properties: encryption and what its key is made from among them
    :param key: the wrapping key, 32 bytes
    :raises Exists: if there is a dataset of that name
    """
    given = _properties({"canmount": CANMOUNT_OFF, **properties})
    _call("create", dataset, dataset.encode(), "zfs", given, key)


def load_key(root: str, key: bytes, check_only: bool = False) -> None:
    """Load the wrapping key of an encryption root.

    :param check_only: only see whether it is the right one, loaded or not
    :raises Locked: if it is the wrong one
    :raises Exists: if it is loaded already
    """
    _call("load_key", root, root.encode(), check_only, key)


def change_key(root: str, properties: Mapping[str, Value], key: bytes) -> None:
    """Give a root whose key is loaded another wrapping key.

    :raises Locked: if the present one is not loaded
    """
    given = _properties(properties)
    _call("change_key", root, root.encode(), "new_key", given, key)


async def unload_key(root: str) -> None:
    """Forget the key of an encryption root.

    :raises Busy: while anything that it encrypts is open
    :raises Locked: if it is not loaded
    """
    await in_thread(_call, "unload_key", root, root.encode())


def module_version() -> str | None:
    """Version of the loaded zfs module; None if none is loaded."""
    try:
        return Path("/sys/module/zfs/version").read_text("ascii").strip()
    except OSError:
        return None


def version_numbers() -> tuple[int, ...] | None:
    """The first three numbers of module_version()."""
    version = module_version()
    if version is None:
        return None
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


async def clones_in_programs(zpool: str) -> bool:
    """Whether channel programs can clone here (OpenZFS 2.4.0 and newer)."""
    return await in_thread(lambda: _can_clone(zpool, module_version()))


@functools.lru_cache(maxsize=4)
def _can_clone(zpool: str, _version: str | None) -> bool:
    return bool(_run("can_clone", zpool, {}, False))
