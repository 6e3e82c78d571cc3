# SPDX-License-Identifier: BSD-2-Clause
"""Run zpool(8), zfs(8) and other programs.

libzfs_core cannot create a zpool or set native properties.  Programs run
without a shell, by absolute paths and with a fixed environment.  Besides
keys.py, which runs the keyholder, no other module starts a process.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import lzc
from .errors import CommandFailed

#: folders in which programs are searched; also their PATH
FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_ENVIRONMENT = {"PATH": ":".join(FOLDERS), "LC_ALL": "C"}
#: seconds until a zpool counts as silent
PATIENCE = 5.0
#: parameter of the zfs module: "1" if it creates no device nodes
INHIBIT = "/sys/module/zfs/parameters/zvol_inhibit_dev"
#: seconds between attempts while udev probes a device; 4.7 in all
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.2, 2.0)

#: messages of zpool(8) and zfs(8) for EBUSY (zpool_vdev.c; for an error of the
#: kernel, zpool_create() in libzfs_pool.c)
_BUSY_WORDS = (
    "is busy",
    "resource busy",
    "is in use",
    "one or more vdevs refer to the same device",
)

#: properties of each zpool that is created or imported here.  If a disk fails,
#: the zpool returns errors, and neither blocks its users nor stops the machine.
#: A disk that is connected later does not become part of it or change its size
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
    """Run *program* to its end; return its exit status and its output.

    The output contains standard output and standard error.  If cancelled, this
    waits for the end of the program first, so that the program does not change
    a disk afterwards.

    :param program: name, without a folder
    :param ok: exit statuses that are not failures
    :raises CommandFailed: for any other status; the code is negative for a
        signal, 126 if the program did not start, 127 if it is not installed
    """
    subcommand = [word for word in arguments[:1] if word[:1].isalpha()]
    command = " ".join([program, *subcommand])
    path = _find(program)
    if path is None:
        raise CommandFailed(
            command,
            127,
            f"the program {program} is not installed; install it in dom0",
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


async def responds(dataset: str) -> bool:
    """Return whether ZFS answers zfs(8) within :py:data:`PATIENCE` seconds.

    A process cannot end while one of its threads waits for a disk.  So another
    process asks, and this does not wait for its end.
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
    """Run a program; retry while it reports that a device is busy.

    udev opens a device for a moment after each change.

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

    All properties are part of one call, so the zpool never exists without
    them.  The creation is never forced.  ZFS chooses ashift by asking the
    disks.

    After a failure the devices may have a partition table or labels that
    zpool(8) wrote before it failed; see probe.make_empty_again().

    :param devices: absolute paths; data is striped over them, not mirrored
    :param compression: property of the root dataset
    :param properties: of the root dataset; all datasets in it inherit them
    :raises ValueError: for a device that zpool(8) might take for a keyword
    :raises CommandFailed: if zpool(8) refuses
    """
    if not devices or not all(path.startswith("/") for path in devices):
        raise ValueError("a zpool needs devices with absolute paths")
    root = {"compression": compression, **properties}
    arguments = ["create"]
    for key, value in ZPOOL_PROPERTIES.items():
        arguments += ["-o", f"{key}={value}"]
    for key, value in root.items():
        arguments += ["-O", f"{key}={value}"]
    await run_patiently("zpool", *arguments, "--", name, *devices)


async def destroy_zpool(name: str) -> None:
    """Destroy a zpool that create_zpool() has just created.

    :raises CommandFailed: if zpool(8) refuses
    """
    await run_patiently("zpool", "destroy", "--", name)


async def set_property(dataset: str, name: str, value: str) -> None:
    """Set a native or user property of a dataset.

    :raises CommandFailed: if zfs(8) refuses
    """
    await set_properties(dataset, {name: value})


async def set_properties(dataset: str, properties: Mapping[str, str]) -> None:
    """Set several properties of a dataset.

    ZFS sets them in one transaction group, except for properties like quota,
    which it sets one by one.

    :raises CommandFailed: if zfs(8) refuses
    """
    words = [f"{name}={value}" for name, value in properties.items()]
    await run("zfs", "set", *words, dataset)


async def inherit(dataset: str, name: str) -> None:
    """Remove a dataset's own value of a property, so that it is inherited.

    :raises CommandFailed: if zfs(8) refuses
    """
    await run("zfs", "inherit", name, dataset)


async def rename(dataset: str, new: str) -> None:
    """Rename a dataset and everything below it.

    ZFS unmounts mounted filesystems, or mounts them at their new place.

    :raises CommandFailed: if zfs(8) refuses
    """
    await run("zfs", "rename", dataset, new)


async def remake_node(dataset: str) -> None:
    """Have ZFS create the node of a zvol that has none, or is hidden.

    If a process was killed in importexport.no_new_nodes(), the module creates
    no nodes.  This turns that off first, unless a living process has the lock.

    Inheriting volmode changes nothing for a zvol that has its node
    (zvol_set_volmode_impl()).

    :raises CommandFailed: if zfs(8) refuses
    """
    _end_inhibition()
    await inherit(dataset, "volmode")


def _end_inhibition() -> None:
    with contextlib.suppress(OSError), open(INHIBIT, "r+b", 0) as setting:
        fcntl.flock(setting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if setting.read(1) == b"1":
            setting.write(b"0")


def zpool_imported(name: str) -> bool:
    """Return whether a zpool of that name is imported, suspended or not.

    The statistics of the zfs module have a folder for each imported zpool.
    Reading them starts no process, and does not block if a disk of the zpool
    does not answer.
    """
    return bool(name) and os.path.exists(f"/proc/spl/kstat/zfs/{name}/state")


def is_suspended(zpool: str) -> bool:
    """Return whether ZFS has stopped all I/O because too many disks fail.

    Like zpool_imported(), this does not block.
    """
    state = Path("/proc/spl/kstat/zfs", zpool, "state")
    try:
        return state.read_text("ascii").strip() == "SUSPENDED"
    except OSError:
        return False
