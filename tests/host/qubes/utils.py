# SPDX-License-Identifier: BSD-2-Clause
"""Helpers shared by the storage code and its drivers."""

import asyncio
import importlib.metadata
import logging
import os
import subprocess

from qubes.release import IS_R43

LOGGER = logging.getLogger("qubes.utils")

_am_root = os.getuid() == 0
_registered = {}


def register_entry_point(group, name, obj):
    """Register *obj* as the entry point *name*, without a package."""
    _registered[group, name] = obj


def entry_point_names(group):
    """Return the names of all entry points of *group*."""
    installed = importlib.metadata.entry_points(group=group)
    names = [point.name for point in installed]
    return names + [name for (grp, name) in _registered if grp == group]


def get_entry_point_one(group, name):
    """Load the only entry point *name*; none is a KeyError."""
    if (group, name) in _registered:
        return _registered[group, name]
    points = list(importlib.metadata.entry_points(group=group, name=name))
    if not points:
        raise KeyError(name)
    if len(points) > 1:
        raise TypeError(f"{len(points)} entry points named {name!r}")
    return points[0].load()


def parse_bool(value):
    """Strict conversion: few spellings, ValueError for all others."""
    spellings = {"True": True, "1": True, "on": True}
    spellings.update({"False": False, "0": False, "off": False, "": False})
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in spellings:
        raise ValueError(f"invalid bool: {value}")
    return spellings[value]


if IS_R43:
    del parse_bool


async def coro_maybe(value):
    """Await *value* if it is a coroutine object, else return it."""
    if asyncio.iscoroutine(value):
        return await value
    return value


async def void_coros_maybe(values):
    """Run all coroutine objects among *values* concurrently to their end.

    One that fails does not stop the others; afterwards one of the
    exceptions is raised (here the first in the order of *values*).
    """
    tasks = [
        asyncio.create_task(value)
        for value in values
        if asyncio.iscoroutine(value)
    ]
    if not tasks:
        return
    await asyncio.wait(tasks)
    for task in tasks:
        task.result()


async def run_program(*args, check=True, input=None, sudo=False, **kwargs):
    """Run a program, through sudo if asked for and not root already."""
    argv = list(args)
    if sudo and not _am_root:
        argv.insert(0, "sudo")
    process = await asyncio.create_subprocess_exec(*argv, **kwargs)
    out, err = await process.communicate(input=input)
    assert process.returncode is not None
    if check and process.returncode != 0:
        raise subprocess.CalledProcessError(
            process.returncode, argv[0], out, err
        )
    return process


def cryptsetup(*args):
    """Run cryptsetup as root with nothing on its standard input."""
    env = {"LC_ALL": "C"}
    env.update(os.environ)
    return run_program(
        "/usr/sbin/cryptsetup",
        *args,
        check=True,
        sudo=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=env,
    )


def fsync_path(path):
    """Flush the file or directory at *path* to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path, *, logger=LOGGER, log_level=logging.DEBUG):
    """Remove *path* and flush its folder; return whether it existed."""
    try:
        os.remove(path)
        fsync_path(os.path.dirname(path))
    except FileNotFoundError:
        return False
    logger.log(log_level, "removed %r", path)
    return True


def rename_file(src, dst, *, logger=LOGGER, log_level=logging.DEBUG):
    """Rename *src* to *dst* and flush the directories of both."""
    os.rename(src, dst)
    for folder in {os.path.dirname(dst), os.path.dirname(src)}:
        fsync_path(folder)
    logger.log(log_level, "renamed %r to %r", src, dst)
