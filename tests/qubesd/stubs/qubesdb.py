# SPDX-License-Identifier: BSD-2-Clause
"""QubesDB in memory: a dictionary for each qube."""

import os

_ENTRIES = {}


class Error(Exception):
    pass


class DisconnectedError(Error):
    pass


class QubesDB:
    def __init__(self, name="dom0"):
        self._name = name
        self._entries = _ENTRIES.setdefault(name, {})
        self._watch = os.eventfd(0)

    def read(self, key):
        return self._name.encode() if key == "/name" else self._entries.get(key)

    def write(self, key, value):
        self._entries[key] = value

    def rm(self, key):
        for entry in self.list(key):
            del self._entries[entry]

    def list(self, path):
        return [key for key in self._entries if key.startswith(path)]

    def multiread(self, path):
        return {key: self._entries[key] for key in self.list(path)}

    def watch(self, path):
        pass

    def unwatch(self, path):
        pass

    def watch_fd(self):
        return self._watch

    def read_watch(self):
        return ""

    def close(self):
        if self._watch is not None:
            os.close(self._watch)
            self._watch = None
