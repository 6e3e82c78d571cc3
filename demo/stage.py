"""What the story is told with: dom0's tools, a shell, and checks."""

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "host"))

import qubes.config

#: bytes; Qubes' own default is 2 GiB, which takes longer to compare
PRIVATE = 64 << 20
qubes.config.defaults["private_img_size"] = PRIVATE

import hostapi
import qubes.exc
import qubes.storage

from qubes_storage_zfs import ZfsZvolPool
from qubes_storage_zfs.container import Container

#: "ok" and "FAILED" -> how many checks ended so
checks = Counter()
#: tool -> how often it was run, and how many programs that started
runs, programs = Counter(), Counter()
_tool = None
_STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"}


def _audit(event, _arguments):
    if _tool is not None and event in _STARTS:
        programs[_tool] += 1


sys.addaudithook(_audit)


@contextlib.contextmanager
def chapter(title):
    """Its title first, and last how long it took."""
    print(f"\n=== {title}")
    begin = time.monotonic()
    yield
    print(f"\n    ({time.monotonic() - begin:.1f} seconds)")


def say(text):
    """A remark to the reader."""
    print("\n" + textwrap.fill(text, 78))


def check(condition, what):
    """Note whether a claim is true."""
    verdict = "ok" if condition else "FAILED"
    checks[verdict] += 1
    print(f"  {verdict}: {what}")


def sh(command):
    """Run a command line and show it; gives what it printed."""
    print(f"$ {command}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command + " 2>&1"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"FAILED: it ended with status {done.returncode}")
    return done.stdout.strip()


class Dom0:
    """A dom0 with its qubesd, and the tools that talk to it."""

    def __init__(self, folder):
        os.makedirs(qubes.storage.VOLUME_STATE_DIR, exist_ok=True)
        hostapi.register_driver("zfs_zvol", ZfsZvolPool)
        self.app = hostapi.new_app(folder / "qubes.xml", hold_devices=True)
        self.wait = asyncio.Runner().run

    def volume(self, target):
        """The volume object of <qube>:<volume>."""
        name, _, volume = target.partition(":")
        return self.app.domains[name].volumes[volume]

    def path(self, target):
        """The device of <qube>:<volume>."""
        return self.volume(target).path

    def kill_qubesd(self):
        """It is killed, and started again; the qubes run on."""
        print("# systemctl kill -s KILL qubesd")
        Container.forget_all()
        self.app = self.wait(hostapi.restart(self.app))

    def export(self, target):
        """What qvm-backup has qubesd do first; the device to read."""
        print(f"# qvm-backup: admin.vm.volume.Export of {target}")
        return self._run("qvm-backup", self.volume(target).export())

    def export_end(self, target, path):
        """What it has qubesd do last."""
        print(f"# qvm-backup: the end of the export of {target}")
        self._run("qvm-backup", self.volume(target).export_end(path))

    def __call__(self, line):
        """Do what this line does in dom0; errors of Qubes are printed.

        Gives what was printed or, for qvm-volume info, the revisions.
        """
        print(f"# {line}")
        words, options = [], {}
        rest = iter(line.split())
        for word in rest:
            if word in ("-C", "-l", "-t", "-P", "-o"):
                options[word] = next(rest)
            elif not word.startswith("-"):
                words.append(word)
        tool = " ".join(words[: 2 if words[0] == "qvm-volume" else 1])
        try:
            return self._run(tool, self._call(words, options))
        except qubes.exc.QubesException as exc:
            # the client formats what it is told
            text = f"{words[0]}: error: {str(exc) % ()}"
            print(textwrap.fill(text, 78, break_on_hyphens=False))
            return text

    def _run(self, tool, call):
        global _tool
        runs[tool] += 1
        _tool = tool
        try:
            return self.wait(call)
        finally:
            _tool = None

    async def _call(self, words, options):
        app = self.app
        match words:
            case "qubes-prefs", "default_pool", pool:
                app.default_pool = pool
                app.save()
            case "qvm-pool", "add", name, driver:
                more = dict([options["-o"].split("=")])
                await hostapi.add_pool(app, name, driver, **more)
            case "qvm-pool", "remove", name:
                await hostapi.remove_pool(app, name)
            case "qvm-create", name:
                more = {"template": options["-t"]} if "-t" in options else {}
                args = name, options["-l"], options.get("-P")
                await hostapi.create_vm(app, options["-C"], *args, **more)
            case "qvm-start", name:
                await app.domains[name].start()
            case "qvm-shutdown", name:
                await app.domains[name].shutdown()
            case "qvm-clone", name, copy:
                await hostapi.clone_vm(app.domains[name], copy)
            case "qvm-remove", name:
                await hostapi.remove_vm(app.domains[name])
            case "qvm-volume", verb, target, *more:
                name, _, volume = target.partition(":")
                return await self._volume(verb, app.domains[name], volume, more)
            case _:
                raise ValueError(words)

    async def _volume(self, verb, vm, name, more):
        if verb == "import":
            size = os.path.getsize(more[0])
            await hostapi.import_file(vm, name, more[0], size)
        elif verb == "revert":
            await hostapi.revert(vm, name, more[0])
        elif verb == "info":
            known = hostapi.volume_info(vm, name)
            for key in "pool", "vid", "size", "usage":
                print(f"{key:8}{known[key]}")
            revisions = hostapi.list_snapshots(vm, name)
            print("Available revisions (for revert):", *revisions or ["none"])
            return revisions
