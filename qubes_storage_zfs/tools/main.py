# SPDX-License-Identifier: BSD-2-Clause
"""The command line of qvm-zfs."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from ..store.messages import reason
from ..zfs.errors import ZfsError
from . import adopt, attach, detach, lock, passwd, status, unlock
from .common import Failed
from .output import Parser, warn

VERBS = (status, unlock, lock, passwd, attach, detach, adopt)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = Parser(
        prog="qvm-zfs",
        description="Qubes OS storage pools on ZFS: state, keys and disks",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in VERBS:
        name = module.__name__.rpartition(".")[2]
        help_text = (module.__doc__ or "").split("\n")[0]
        verb = verbs.add_parser(
            name, help=help_text, description=module.__doc__
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    :return: the exit status: 0, 1 if it failed, 2 if it was misused
    """
    parsed = parser().parse_args(arguments)
    if os.geteuid() != 0:
        warn("qvm-zfs: run it as root, with sudo")
        return 1
    try:
        return int(asyncio.run(parsed.run(parsed)) or 0)
    except (Failed, ZfsError) as exc:
        why = reason(exc)
    except (KeyboardInterrupt, asyncio.CancelledError):
        why = "interrupted"
    warn(f"qvm-zfs {parsed.verb}: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
