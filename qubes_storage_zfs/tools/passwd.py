# SPDX-License-Identifier: BSD-2-Clause
"""Change a pool's passphrase; the present one is asked for first."""

import argparse

from ..store import messages
from ..store.options import DEFAULT_ITERATIONS, BadOption, parse_iterations
from ..zfs import keys
from ..zfs.errors import Busy
from .common import Failed, terminal
from .output import say
from .pools import encrypted_pool, must_be_allowed


def _iterations(text: str) -> int:
    try:
        return parse_iterations(text)
    except BadOption as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument(
        "--pbkdf2iters",
        type=_iterations,
        default=DEFAULT_ITERATIONS,
        metavar="N",
        help="how dear each guess is made (default: %(default)s)",
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
            holders="; ".join(exc.holders) or "something has it open",
        ) from exc
    say(f"The passphrase of {pool.name} was changed.")
    return 0
