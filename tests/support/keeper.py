# SPDX-License-Identifier: BSD-2-Clause
"""A process that has an encrypted pool, as qubesd has.

    python -m tests.support.keeper ZPOOL NAME [OPTION=VALUE ...]

The packaged service asks for passphrases. It shows its prompt with the first
program that it finds; see Person in test_no_leaks.py. This process reads one
command per line from its standard input (add, write, lock or ask), runs it,
and prints "done".
"""

import asyncio
import os
import sys
import types
from pathlib import Path

from qubes_storage_zfs.driver import prompts
from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.zfs import keys

from .zpools import MIB

SERVICE = Path(__file__).parents[2] / "dom0/qubes-rpc/qubes.AskPassword"


class Screen:
    """Stand in for dom0, which has a screen."""

    name = "dom0"
    klass = "AdminVM"

    async def run_service(self, service, user, **popen):
        assert user == "root"
        name, _, purpose = service.partition("+")
        assert name == SERVICE.name
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(SERVICE), purpose),
            env={**os.environ, "DISPLAY": ":0"},
            **popen,
        )


async def main(zpool, name, *options):
    domains = {"dom0": Screen()}
    prompts.note_application(
        types.SimpleNamespace(domains=domains, default_guivm=None)
    )
    pool = ZfsEncryptedPool(
        name=name,
        zpool_name=zpool,
        pbkdf2iters="100000",
        unload_timeout="0",
        **dict(option.split("=") for option in options),
    )
    qube = types.SimpleNamespace(name="journalist", app=None)
    volume = pool.init_volume(
        qube,
        {
            "name": "private",
            "pool": name,
            "rw": True,
            "size": MIB,
            "save_on_stop": True,
        },
    )
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "add":
            await pool.setup()
            await volume.create()
        elif word == "write":
            path = await volume.export()
            await volume.export_end(path)
        elif word == "lock":
            await keys.unload(pool.container)
        elif word == "ask":
            print("asking", flush=True)
            await pool.unlock("work")
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
