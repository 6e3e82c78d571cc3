# SPDX-License-Identifier: BSD-2-Clause
"""The command line of qvm-zfs."""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from ..store.messages import reason
from ..zfs.errors import ZfsError
from . import adopt, attach, detach, lock, passwd, status, unlock
from .common import Failed
from .output import Parser, warn

#: heading of a group in the help -> the subcommands, one module each
COMMANDS: Mapping[str, Sequence[ModuleType]] = {
    "state": (status,),
    "keys of encrypted pools": (unlock, lock, passwd),
    "disks": (attach, detach),
    "migration": (adopt,),
}

DESCRIPTION = "Show and manage Qubes OS storage pools on ZFS. Run it in dom0."
EPILOG = """\
'qvm-zfs COMMAND --help' explains the options of a command.

example: unlock the encrypted pool 'work', then show its state
  sudo qvm-zfs unlock work
  sudo qvm-zfs status work
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    summaries = "\n\n".join(
        "\n".join([f"{heading}:", *map(_summary, modules)])
        for heading, modules in COMMANDS.items()
    )
    top = Parser(
        prog="qvm-zfs",
        usage="qvm-zfs [-h] COMMAND ...",
        description=f"{DESCRIPTION}\n\n{summaries}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = top.add_subparsers(
        dest="command",
        metavar="COMMAND",
        required=True,
        help=argparse.SUPPRESS,
        prog="qvm-zfs",
    )
    for module in sum(map(tuple, COMMANDS.values()), ()):
        subparser = subparsers.add_parser(
            _name(module),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return top


def _name(module: ModuleType) -> str:
    """Return the name of a module's subcommand."""
    return module.__name__.rpartition(".")[2]


def _summary(module: ModuleType) -> str:
    """Return the line of a subcommand for ``--help``."""
    first = (module.__doc__ or "").split("\n")[0].rstrip(".")
    return f"  {_name(module):<8} {first}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    :return: the exit status: 0 after success, 1 after a failure; a wrong
        command line exits with 2
    """
    parsed = parser().parse_args(arguments)
    if os.geteuid() != 0:
        warn("qvm-zfs: only root can use it; run it with sudo")
        return 1
    try:
        return int(asyncio.run(parsed.run(parsed)) or 0)
    except (Failed, ZfsError) as exc:
        why = reason(exc)
    except (KeyboardInterrupt, asyncio.CancelledError):
        why = "interrupted"
    warn(f"qvm-zfs {parsed.command}: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
