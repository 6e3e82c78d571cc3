# SPDX-License-Identifier: BSD-2-Clause
"""What the story is told with: dom0's tools, a shell, and checks."""

import asyncio
import os
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "host"))

import hostapi
import qubes.exc
import qubes.ext
import qubes.storage
import qubes.vm.kinds

from qubes_storage_zfs import ZfsEncryptedPool, ZfsZvolPool
from qubes_storage_zfs.driver import prompts
from qubes_storage_zfs.driver.extension import PoolExtension
from qubes_storage_zfs.tools.common import QUBES_XML
from qubes_storage_zfs.zfs import runtime
from tests.support.background import settled
from tests.support.prompts import Person

# 64 MiB instead of 2 GiB, which would only take longer to compare
qubes.vm.kinds.AppVM.default_volume_config["private"]["size"] = 64 << 20

#: "ok" and "FAILED" -> how many checks ended so
checks: Counter[str] = Counter()
#: tool -> how often it was run, and how many programs that started
runs: Counter[str] = Counter()
programs: Counter[str] = Counter()
_tool = None


def _audit(event, _arguments):
    starts = "subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"
    if _tool is not None and event in starts:
        programs[_tool] += 1


sys.addaudithook(_audit)


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
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(
        shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"FAILED: it ended with status {done.returncode}")
    return done.stdout.strip()


def person():
    """Somebody answers each prompt from now on; who, and what was asked."""
    somebody = Person()
    prompts.prompt = somebody.prompt
    return somebody


class Dom0:
    """A dom0 with its qubesd, and the tools that talk to it."""

    def __init__(self, folder):
        os.makedirs(qubes.storage.VOLUME_STATE_DIR, exist_ok=True)
        hostapi.register_driver("zfs_zvol", ZfsZvolPool)
        hostapi.register_driver("zfs_encrypted", ZfsEncryptedPool)
        qubes.ext.register_extension(PoolExtension)
        self.app = hostapi.new_app(folder / "qubes.xml", hold_devices=True)
        # where qvm-zfs, as another process, finds what qubesd has
        QUBES_XML.parent.mkdir(exist_ok=True)
        QUBES_XML.unlink(missing_ok=True)
        QUBES_XML.symlink_to(self.app.store)
        self._runner = asyncio.Runner()

    def _wait(self, verb):
        return self._runner.run(settled(verb))

    def volume(self, target):
        """The volume object of <qube>:<volume>."""
        name, _, volume = target.partition(":")
        return self.app.domains[name].volumes[volume]

    def kill_qubesd(self):
        """It dies and is started again; the qubes run on."""
        print("# systemctl kill -s KILL qubesd; systemctl start qubesd")
        runtime.restart()
        self.app = self._wait(hostapi.restart(self.app))

    def export(self, target):
        """What qvm-backup has qubesd do first; the device to read."""
        print(f"# qvm-backup: begins to read {target}")
        return self._run("qvm-backup", self.volume(target).export())

    def export_end(self, target, path):
        """What it has qubesd do last."""
        print(f"# qvm-backup: has read {target}")
        self._run("qvm-backup", self.volume(target).export_end(path))

    def __call__(self, line):
        """Do what this line does in dom0; a refusal is shown and given."""
        print(f"# {line}")
        words, rest = [], iter(shlex.split(line))
        options: dict[str, Any] = {"-C": "AppVM", "-P": None, "-o": {}}
        for word in rest:
            if word == "-o":
                name, _, value = next(rest).partition("=")
                options["-o"][name] = value
            elif word in ("-C", "-l", "-t", "-P"):
                options[word] = next(rest)
            elif word == "--unset":
                options[word] = True
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

    def qvm_zfs(self, words, answers=""):
        """Run the tool, and show it; gives the process, which has ended."""
        print(f"# sudo qvm-zfs {words}")
        tool = [sys.executable, "-m", "qubes_storage_zfs.tools.main"]
        done = subprocess.run(
            [*tool, *words.split()],
            input=answers,
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout + done.stderr, end="")
        return done

    def _run(self, tool, call):
        global _tool
        runs[tool] += 1
        _tool = tool
        try:
            return self._wait(call)
        finally:
            _tool = None

    async def _call(self, words, given):
        app = self.app
        match words:
            case "qubes-prefs", name, pool:
                setattr(app, name, pool)
                app.save()
            case "qvm-pool", "add", name, driver:
                await hostapi.add_pool(app, name, driver, **given["-o"])
            case "qvm-pool", "remove", name:
                await hostapi.remove_pool(app, name)
            case "qvm-pool", "list":
                for name, pool in app.pools.items():
                    print(f"{name:20}{pool.config.get('driver')}")
            case "qvm-pool", "info", name:
                for key, value in hostapi.pool_info(app, name).items():
                    print(f"{key:24}{value}")
            case "qvm-pool", "set", name:
                keep = given["-o"]["revisions_to_keep"]
                app.pools[name].revisions_to_keep = int(keep)
                app.save()
            case "qvm-create", _ if "-l" not in given:
                raise qubes.exc.QubesException("--label option is mandatory")
            case "qvm-create", name:
                more = {"template": given["-t"]} if "-t" in given else {}
                args = given["-C"], name, given["-l"], given["-P"]
                await hostapi.create_vm(app, *args, **more)
            case "qvm-start", name:
                await app.domains[name].start()
            case "qvm-shutdown", name:
                await app.domains[name].shutdown()
            case "qvm-kill", name:
                await app.domains[name].kill()
            case "qvm-prefs", name, "template", template:
                app.domains[name].template = template
                app.save()
            case "qvm-features", name, feature if "--unset" in given:
                del app.domains[name].features[feature]
                app.save()
            case "qvm-features", name:
                for key, value in app.domains[name].features.items():
                    print(f"{key:24}{value}")
            case "qvm-features", name, feature, value:
                app.domains[name].features[feature] = value
                app.save()
            case "qvm-tags", name:
                print("\n".join(sorted(app.domains[name].tags)))
            case "qvm-clone", name, copy:
                await hostapi.clone_vm(app.domains[name], copy, given["-P"])
            case "qvm-remove", name:
                await hostapi.remove_vm(app.domains[name])
            case "qvm-volume", verb, target, *more:
                vm, _, volume = target.partition(":")
                return await self._volume(verb, app.domains[vm], volume, *more)
            case _:
                raise ValueError(words)

    async def _volume(self, verb, vm, name, what=None, value=None):
        if verb == "import":
            size = os.path.getsize(what)
            await hostapi.import_file(vm, name, what, size)
        elif verb == "revert":
            last = list(hostapi.list_snapshots(vm, name))[-1:]
            await hostapi.revert(vm, name, what or last[0])
        elif verb == "resize":
            number, unit = what[:-3], {"MiB": 20, "GiB": 30}[what[-3:]]
            await hostapi.resize(vm, name, int(number) << unit)
        elif verb == "config":
            change = {
                "revisions_to_keep": hostapi.set_revisions_to_keep,
                "ephemeral": hostapi.set_ephemeral,
            }[what]
            change(vm, name, int(value) if value.isdecimal() else value)
        elif verb == "info":
            for key, known in hostapi.volume_info(vm, name).items():
                if key != "path":
                    print(f"{key:18}{known}")
            revisions = hostapi.list_snapshots(vm, name)
            none = "" if revisions else " none"
            print(f"List of available revisions (for revert):{none}")
            for revision in revisions:
                print(f"  {revision}")
            return revisions
