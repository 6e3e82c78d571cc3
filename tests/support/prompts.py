# SPDX-License-Identifier: BSD-2-Clause
"""Stand-ins for the user who answers the passphrase prompt."""

import asyncio
import errno
import os

from qubes_storage_zfs.driver import prompts
from qubes_storage_zfs.zfs.keys import PromptFailed

PASSPHRASE = b"correct horse battery staple"


class Person:
    """Answer prompts and record them.

    :ivar replies: one for each prompt; later prompts get PASSPHRASE. Bytes are
        written with a newline, an exception is raised, and None waits until
        the prompt is cancelled
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        #: the purpose of each prompt
        self.asked = []
        #: how many prompts the driver closed
        self.closed = 0
        self.domains = []

    def prompt(self, pool, chosen, qube=None, app=None, instead=""):
        """Replace driver.prompts.prompt()."""
        self.domains.append((chosen, qube))
        return self

    async def __call__(self, purpose, answers):
        self.asked.append(purpose)
        reply = self.replies.pop(0) if self.replies else PASSPHRASE
        if reply is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.closed += 1
        if isinstance(reply, Exception):
            raise reply
        try:
            os.write(answers, reply + b"\n")
        except OSError as exc:
            assert exc.errno == errno.EPIPE


def cancelled():
    return PromptFailed(prompts.CANCELLED)
