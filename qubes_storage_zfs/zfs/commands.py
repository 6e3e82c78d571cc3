"""The few things libzfs_core cannot do, and the one door to programs.

Creating a zpool and setting native properties have no call in libzfs_core;
they are done by the programs zpool(8) and zfs(8), without a shell, with an
environment of our own and with absolute paths.  Nothing else below this
package's ``zfs`` starts a process.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import lzc
from .errors import CommandFailed

#: where programs are looked for, and all of PATH that they see
FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_ENVIRONMENT = {"PATH": ":".join(FOLDERS), "LC_ALL": "C"}
#: seconds until a zpool counts as one that does not answer
PATIENCE = 5.0
#: whether the module makes no device nodes
INHIBIT = "/sys/module/zfs/parameters/zvol_inhibit_dev"
#: seconds between attempts while udev probes a device; 4.7 in all
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.2, 2.0)

#: what the ZFS programs print for EBUSY (zpool_vdev.c and, for the kernel's
#: answer, zpool_create() in libzfs_pool.c)
_BUSY_WORDS = (
    "is busy",
    "resource busy",
    "is in use",
    "one or more vdevs refer to the same device",
)

#: of a zpool, created here or attached: one whose disk is gone gives errors
#: and neither hangs qubes nor stops the machine, and no disk that is connected
#: becomes part of it or changes its size
ZPOOL_PROPERTIES = {
    "failmode": "continue",
    "autotrim": "on",
    "autoreplace": "off",
    "autoexpand": "off",
}


def _find(program: str) -> str | None:
    for folder in FOLDERS:
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    return None


async def _execute(path: str, arguments: Sequence[str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_ENVIRONMENT,
    )
    output, _ = await process.communicate()
    return await process.wait(), output.decode(errors="replace").strip()


async def run(
    program: str, *arguments: str, ok: tuple[int, ...] = (0,)
) -> tuple[int, str]:
    """Run *program* to its end; give its status and what it printed.

    Output and errors come in one text.  If cancelled, the program's end is
    awaited first: what it was doing to a disk is over then.

    :param program: its name, without a folder
    :param ok: the statuses that are no failure
    :raises CommandFailed: for any other status, negative for a signal;
        127 if there is no such program
    """
    verb = [word for word in arguments[:1] if word[:1].isalpha()]
    command = " ".join([program, *verb])
    path = _find(program)
    if path is None:
        raise CommandFailed(
            command, 127, f"the program {program} is not installed"
        )
    child = asyncio.ensure_future(_execute(path, arguments))
    try:
        status, output = await asyncio.shield(child)
    except asyncio.CancelledError:
        await lzc.ended(child)
        raise
    except OSError as exc:
        raise CommandFailed(
            command, 126, f"{path} did not start: {exc.strerror}"
        ) from exc
    if status not in ok:
        raise CommandFailed(command, status, output)
    return status, output


async def answers(dataset: str) -> bool:
    """Return whether ZFS answers a program within :py:data:`PATIENCE`.

    This process would not end before a thread of its own that waits for a
    disk.  A program that does is left to itself.
    """
    path = _find("zfs")
    if path is None:
        return True
    process = await asyncio.create_subprocess_exec(
        *(path, "get", "-H", "used,readonly,keystatus", dataset),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=_ENVIRONMENT,
    )
    try:
        await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        return False
    return True


async def run_patiently(program: str, *arguments: str) -> None:
    """As run(), tried again while udev may be what holds the device.

    :raises CommandFailed: as run() does
    """
    for pause in PAUSES:
        try:
            await run(program, *arguments)
            return
        except CommandFailed as exc:
            if not any(word in exc.output.lower() for word in _BUSY_WORDS):
                raise
        await asyncio.sleep(pause)
    await run(program, *arguments)


async def create_zpool(
    name: str,
    devices: Sequence[str],
    compression: str,
    properties: Mapping[str, str],
) -> None:
    """Create a zpool over *devices* that probe.checked() has just accepted.

    All properties are part of the call: no zpool exists without them.  It is
    never forced, and ashift is left to ZFS, which asks the disks.

    After a failure the devices may carry a partition table or labels that
    zpool(8) made before it found out; see make_blank_again().

    :param devices: absolute paths; their space is added up, nothing mirrored
    :param properties: of the root dataset, inherited by all that is in it
    :raises ValueError: for a device that zpool(8) might take as a keyword
    :raises CommandFailed: if zpool(8) refused
    """
    if not devices or not all(path.startswith("/") for path in devices):
        raise ValueError("A zpool needs devices, given by absolute paths.")
    root = {"compression": compression, **properties}
    arguments = ["create"]
    for key, value in ZPOOL_PROPERTIES.items():
        arguments += ["-o", f"{key}={value}"]
    for key, value in root.items():
        arguments += ["-O", f"{key}={value}"]
    await run_patiently("zpool", *arguments, "--", name, *devices)


async def destroy_zpool(name: str) -> None:
    """Take back a zpool that create_zpool() has just made.

    :raises CommandFailed: if zpool(8) refused
    """
    await run_patiently("zpool", "destroy", "--", name)


async def set_property(dataset: str, name: str, value: str) -> None:
    """Set a property of a dataset, native or user's.

    :raises CommandFailed: if zfs(8) refused
    """
    await set_properties(dataset, {name: value})


async def set_properties(dataset: str, properties: Mapping[str, str]) -> None:
    """Set several at once: in one transaction group, but for such as a
    quota, which ZFS sets one by one.

    :raises CommandFailed: if zfs(8) refused
    """
    words = [f"{name}={value}" for name, value in properties.items()]
    await run("zfs", "set", *words, dataset)


async def inherit(dataset: str, name: str) -> None:
    """Have a property of a dataset no value of its own.

    :raises CommandFailed: if zfs(8) refused
    """
    await run("zfs", "inherit", name, dataset)


async def rename(dataset: str, new: str) -> None:
    """Rename a dataset and all below; a mounted one is unmounted or moved.

    :raises CommandFailed: if zfs(8) refused
    """
    await run("zfs", "rename", dataset, new)


async def remake_node(dataset: str) -> None:
    """Have ZFS make the node of a zvol that has none, or is hidden.

    If a process was killed that had told the module to make none
    (importexport.no_new_nodes()), it is told otherwise first; while one lives, it
    holds a lock.

    Taking volmode from the container again changes nothing for a zvol that
    has its node (zvol_set_volmode_impl()).

    :raises CommandFailed: if zfs(8) refused
    """
    _end_inhibition()
    await inherit(dataset, "volmode")


def _end_inhibition() -> None:
    with contextlib.suppress(OSError), open(INHIBIT, "r+b", 0) as setting:
        fcntl.flock(setting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if setting.read(1) == b"1":
            setting.write(b"0")


def zpool_imported(name: str) -> bool:
    """Whether a zpool of that name is imported, suspended ones included.

    Read from the module's statistics, one folder a zpool: no process, and
    no wait for a zpool that does not answer.
    """
    return bool(name) and os.path.exists(f"/proc/spl/kstat/zfs/{name}/state")


def is_suspended(zpool: str) -> bool:
    """Return whether ZFS has stopped all I/O of a zpool, because too many of
    its disks fail.

    Read without waiting, as in zpool_imported().
    """
    state = Path("/proc/spl/kstat/zfs", zpool, "state")
    try:
        return state.read_text("ascii").strip() == "SUSPENDED"
    except OSError:
        return False
