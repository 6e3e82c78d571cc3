# SPDX-License-Identifier: BSD-2-Clause
"""Load the key of an encrypted pool.

On a terminal, unlock asks for the passphrase at most three times and does not
show it.  Otherwise it reads the passphrase as one line from standard input.
"""

import argparse

from ..zfs import keys
from .common import terminal
from .output import say
from .pools import encrypted_pool, must_be_allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "pool",
        metavar="POOL",
        help="encrypted pool to unlock; its qubes then start without a prompt",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    pool = await encrypted_pool(arguments.pool)
    key = await keys.state(pool.dataset)
    if key.loaded:
        say(f"{pool.name} is already unlocked")
        return 0
    keys.require_passphrase(pool.dataset, key)
    await must_be_allowed(pool)
    with terminal(pool.name) as prompt:
        await keys.load(pool.dataset, prompt, typed=True)
    say(f"{pool.name} is unlocked")
    return 0
