# SPDX-License-Identifier: BSD-2-Clause
"""nbdkit plugin: a disk with a volatile write cache.

Writes since the last flush are in the memory of this process only.  When the
client disconnects, the power is cut.  Some of those writes then reach the disk
and the others are lost, in any order, as with a real disk.

The parameters are:

- image: raw file, the platter
- keep: fraction of the unflushed pieces that reach the platter, 0 to 1
- piece: bytes; larger writes may be torn at multiples of it; 0: never
- seed: of the random choices
- freeze: name of a file. Once it exists, the disk freezes at one of the next
  writes or flushes. A flush is the most likely, because then the most
  unflushed data can be lost.
- report: file for one JSON object with the numbers, written after the cut
"""

import json
import mmap
import os
import random
import time

import nbdkit  # noqa: F401  (nbdkit takes no script for a plugin without it)

API_VERSION = 2
#: probability that the disk freezes at a write, once it may
FREEZE_AT_WRITE = 0.1
settings = {"keep": "0", "piece": "512", "seed": "0"}


def config(key, value):
    settings[key] = value


class Disk:
    """The platter, and the writes that were not flushed to it.

    :ivar view: what the client reads: a private mapping of the platter, so
        that a write to it does not reach the file
    :ivar unflushed: (offset, bytes), in the order of arrival
    """

    def __init__(self):
        self.platter = os.open(settings["image"], os.O_RDWR)
        self.size = os.fstat(self.platter).st_size
        self.view = mmap.mmap(self.platter, self.size, flags=mmap.MAP_PRIVATE)
        self.unflushed = []
        self.flushes = 0
        self.dice = random.Random(settings["seed"])
        self.is_cut = False

    def may_freeze(self, chance):
        """Cut now if it is time; the request is then never answered."""
        if self.unflushed and os.path.exists(settings["freeze"]):
            if self.dice.random() < chance:
                self.cut()
        while self.is_cut:
            time.sleep(60)

    def flush(self):
        for offset, data in self.unflushed:
            os.pwrite(self.platter, data, offset)
        self.unflushed.clear()
        self.flushes += 1

    def cut(self):
        """Write some unflushed pieces to the platter, and drop the others."""
        if self.is_cut:
            return
        self.is_cut = True
        keep, piece = float(settings["keep"]), int(settings["piece"])
        kept_bytes = lost_bytes = 0
        for start, data in self.unflushed:
            step = piece or len(data)
            for offset in range(0, len(data), step):
                part = data[offset : offset + step]
                if self.dice.random() < keep:
                    os.pwrite(self.platter, part, start + offset)
                    kept_bytes += len(part)
                else:
                    lost_bytes += len(part)
        numbers = {
            "flushes": self.flushes,
            "writes": len(self.unflushed),
            "kept": kept_bytes,
            "lost": lost_bytes,
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
    disk.may_freeze(FREEZE_AT_WRITE)
    data = bytes(buf)
    disk.view[offset : offset + len(data)] = data
    disk.unflushed.append((offset, data))


def flush(disk, flags):
    disk.may_freeze(1)
    disk.flush()


def close(disk):
    disk.cut()
