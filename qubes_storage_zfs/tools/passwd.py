# SPDX-License-Identifier: BSD-2-Clause
"""Change the passphrase of an encrypted pool.

passwd asks for the present passphrase, then twice for the new one.  If standard
input is not a terminal, it reads these as three lines.  A pool that was locked
is locked again afterwards.
"""

import argparse

from ..store import messages
from ..store.options import DEFAULT_ITERATIONS, BadOption, parse_iterations
from ..zfs import keys
from ..zfs.errors import Busy
from .common import Failed, terminal
from .output import say
from .pools import encrypted_pool, must_be_allowed


def _iterations(text: str) -> int:
    """Return the value of ``--pbkdf2iters``.

    :raises argparse.ArgumentTypeError: if it is not allowed
    """
    try:
        return parse_iterations(text)
    except BadOption as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "pool",
        metavar="POOL",
        help="encrypted pool whose passphrase is changed",
    )
    parser.add_argument(
        "--pbkdf2iters",
        type=_iterations,
        default=DEFAULT_ITERATIONS,
        metavar="N",
        help="PBKDF2 iterations of the new key, 100000 to 100000000 (default:"
        " %(default)s); more iterations slow down brute-force attacks, and"
        " each unlocking",
    )


async def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; return its exit status."""
    pool = await encrypted_pool(arguments.pool)
    if (await keys.state(pool.dataset)).locked:
        await must_be_allowed(pool)
    try:
        with terminal(pool.name) as prompt:
            await keys.change(
                pool.dataset, arguments.pbkdf2iters, prompt, typed=True
            )
    except Busy as exc:
        raise Failed(
            messages.CHANGED_BUT,
            pool=pool.name,
            holders="; ".join(exc.holders) or "an unknown process uses it",
        ) from exc
    say(f"the passphrase of {pool.name} was changed")
    return 0
