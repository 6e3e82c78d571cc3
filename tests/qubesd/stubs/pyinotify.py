# SPDX-License-Identifier: BSD-2-Clause
"""Watch nothing, because the qrexec policy does not change here."""

IN_CREATE = IN_MODIFY = IN_DELETE = IN_MOVED_FROM = IN_MOVED_TO = 0
IN_ONLYDIR = IN_CLOSE_WRITE = IN_ATTRIB = 0


class ProcessEvent:
    pass


class WatchManager:
    def add_watch(self, *_args, **_kwargs):
        return {}

    def rm_watch(self, *_args, **_kwargs):
        pass

    def close(self):
        pass


class AsyncioNotifier:
    def __init__(self, *_args, **_kwargs):
        pass

    def stop(self):
        pass
