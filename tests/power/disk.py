# SPDX-License-Identifier: BSD-2-Clause
"""nbdkit plugin: a disk with a volatile write cache.

What was written since the last flush is in this process's memory only.  When
the client goes away the power is cut: of those writes some reach the disk and
the others are lost, in no order, as with a real disk.

Parameters: image (raw file, the platter), keep (0 to 1: which part of the
unflushed pieces reaches it), piece (bytes; larger writes may be torn at
multiples of it; 0: never), seed, freeze (file: once it is there the disk
stands still before one of the next writes or flushes, most likely a flush,
when most is at stake), report (file that is written once the cut is done: one
JSON object with the numbers).
"""

import json
import mmap
import os
import random
import time

import nbdkit  # noqa: F401  (nbdkit takes no script for a plugin without it)

API_VERSION = 2
#: how likely the disk freezes at a write, once it may
AT_WRITE = 0.1
settings = {"keep": "0", "piece": "512", "seed": "0"}


def config(key, value):
    settings[key] = value


class Disk:
    """The platter and what was not flushed to it.

    :ivar view: what the client reads: private memory over the platter, so
        what is written to it does not reach the file
    :ivar unflushed: (offset, bytes) in the order of arrival
    """

    def __init__(self):
        self.platter = os.open(settings["image"], os.O_RDWR)
        self.size = os.fstat(self.platter).st_size
        self.view = mmap.mmap(self.platter, self.size, flags=mmap.MAP_PRIVATE)
        self.unflushed = []
        self.flushes = 0
        self.dice = random.Random(settings["seed"])
        self.gone = False

    def may_freeze(self, chance):
        """Cut now if it is time: what was asked for is never answered."""
        if self.unflushed and os.path.exists(settings["freeze"]):
            if self.dice.random() < chance:
                self.cut()
        while self.gone:
            time.sleep(60)

    def flush(self):
        for offset, data in self.unflushed:
            os.pwrite(self.platter, data, offset)
        self.unflushed.clear()
        self.flushes += 1

    def cut(self):
        """Some unflushed pieces reach the platter, the others never do."""
        if self.gone:
            return
        self.gone = True
        keep, piece = float(settings["keep"]), int(settings["piece"])
        kept = lost = 0
        for start, data in self.unflushed:
            step = piece or len(data)
            for offset in range(0, len(data), step):
                part = data[offset : offset + step]
                if self.dice.random() < keep:
                    os.pwrite(self.platter, part, start + offset)
                    kept += len(part)
                else:
                    lost += len(part)
        numbers = {
            "flushes": self.flushes,
            "writes": len(self.unflushed),
            "kept": kept,
            "lost": lost,
        }
        os.close(self.platter)
        partial = settings["report"] + ".partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT), "w") as out:
            json.dump(numbers, out)
        os.rename(partial, settings["report"])


def open(readonly):
    return Disk()


def get_size(disk):
    return disk.size


def pread(disk, buf, offset, flags):
    buf[:] = disk.view[offset : offset + len(buf)]


def pwrite(disk, buf, offset, flags):
    disk.may_freeze(AT_WRITE)
    data = bytes(buf)
    disk.view[offset : offset + len(data)] = data
    disk.unflushed.append((offset, data))


def flush(disk, flags):
    disk.may_freeze(1)
    disk.flush()


def close(disk):
    disk.cut()
