"""A process that has an encrypted pool, as qubesd has; run by tests.

    python -m tests.zfs.keeper ZPOOL NAME FILE

The answer to each prompt is what FILE has in it, which is no business of
this process.  It does what it is told on its standard input, a word a line:
add, write, lock, ask (until it is answered or killed); and says when that is
done.
"""

import asyncio
import sys
import types

from qubes_storage_zfs import ask
from qubes_storage_zfs.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.zfs import keys

from .conftest import MIB


class Screen:
    """A GUI domain; its service is a line of shell."""

    name = "dom0"
    klass = "AdminVM"

    def __init__(self, line):
        self.line = line

    async def run_service(self, service, user, **popen):
        assert user == "root"
        return await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", self.line, service), **popen
        )


async def main(zpool, name, file):
    screen = Screen(f"read -r words; cat {file}")
    domains = {"dom0": screen}
    ask.remember(types.SimpleNamespace(domains=domains, default_guivm=None))
    pool = ZfsEncryptedPool(
        name=name, zpool_name=zpool, pbkdf2iters="100000", unload_timeout="0"
    )
    qube = types.SimpleNamespace(name="work", app=None)
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
            screen.line = "exec cat >/dev/null"
            print("asking", flush=True)
            await pool.unlock("work")
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
