# SPDX-License-Identifier: BSD-2-Clause
"""The means of the demonstration: dom0's tools, a shell, and checks."""

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

# 64 MiB instead of 2 GiB: comparing more would only take longer
qubes.vm.kinds.AppVM.default_volume_config["private"]["size"] = 64 << 20

#: "ok" and "FAILED" -> number of checks with this result
checks: Counter[str] = Counter()
#: tool -> how often it ran, and how many programs it started
runs: Counter[str] = Counter()
programs: Counter[str] = Counter()
_tool = None


def _audit(event, _arguments):
    starts = "subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"
    if _tool is not None and event in starts:
        programs[_tool] += 1


sys.addaudithook(_audit)


def say(text):
    """Print a remark to the reader."""
    print("\n" + textwrap.fill(text, 78))


def check(condition, claim):
    """Print and count whether a claim is true."""
    verdict = "ok" if condition else "FAILED"
    checks[verdict] += 1
    print(f"  {verdict}: {claim}")


def sh(command):
    """Show and run a command line; return its output."""
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
        raise SystemExit(
            f"FAILED: the command failed with status {done.returncode}"
        )
    return done.stdout.strip()


def person():
    """Answer each prompt from now on; return the stand-in for the user."""
    stand_in = Person()
    prompts.prompt = stand_in.prompt
    return stand_in


class Dom0:
    """A dom0 with its qubesd and the command-line tools."""

    def __init__(self, folder):
        os.makedirs(qubes.storage.VOLUME_STATE_DIR, exist_ok=True)
        hostapi.register_driver("zfs_zvol", ZfsZvolPool)
        hostapi.register_driver("zfs_encrypted", ZfsEncryptedPool)
        qubes.ext.register_extension(PoolExtension)
        self.app = hostapi.new_app(folder / "qubes.xml", hold_devices=True)
        # qvm-zfs, another process, reads the file of this qubesd here
        QUBES_XML.parent.mkdir(exist_ok=True)
        QUBES_XML.unlink(missing_ok=True)
        QUBES_XML.symlink_to(self.app.store)
        self._runner = asyncio.Runner()

    def _wait(self, operation):
        return self._runner.run(settled(operation))

    def volume(self, target):
        """Return the volume object of <qube>:<volume>."""
        name, _, volume = target.partition(":")
        return self.app.domains[name].volumes[volume]

    def kill_qubesd(self):
        """Kill qubesd and start it again; the qubes continue to run."""
        print("# systemctl kill -s KILL qubesd; systemctl start qubesd")
        runtime.restart()
        self.app = self._wait(hostapi.restart(self.app))

    def export(self, target):
        """Start an export, as qvm-backup does; return the device to read."""
        print(f"# qvm-backup: starts to read {target}")
        return self._run("qvm-backup", self.volume(target).export())

    def export_end(self, target, path):
        """Finish an export, as qvm-backup does."""
        print(f"# qvm-backup: has read {target}")
        self._run("qvm-backup", self.volume(target).export_end(path))

    def __call__(self, line):
        """Do what this line does in dom0; return its result or the refusal."""
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
            # the client formats the message, as core-admin-client does
            text = f"{words[0]}: error: {str(exc) % ()}"
            print(textwrap.fill(text, 78, break_on_hyphens=False))
            return text

    def qvm_zfs(self, words, answers=""):
        """Show and run qvm-zfs; return the finished process."""
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

    async def _call(self, words, options):
        app = self.app
        match words:
            case "qubes-prefs", name, pool:
                setattr(app, name, pool)
                app.save()
            case "qvm-pool", "add", name, driver:
                await hostapi.add_pool(app, name, driver, **options["-o"])
            case "qvm-pool", "remove", name:
                await hostapi.remove_pool(app, name)
            case "qvm-pool", "list":
                for name, pool in app.pools.items():
                    print(f"{name:20}{pool.config.get('driver')}")
            case "qvm-pool", "info", name:
                for key, value in hostapi.pool_info(app, name).items():
                    print(f"{key:24}{value}")
            case "qvm-pool", "set", name:
                keep = options["-o"]["revisions_to_keep"]
                app.pools[name].revisions_to_keep = int(keep)
                app.save()
            case "qvm-create", _ if "-l" not in options:
                raise qubes.exc.QubesException("--label option is mandatory")
            case "qvm-create", name:
                more = {"template": options["-t"]} if "-t" in options else {}
                args = options["-C"], name, options["-l"], options["-P"]
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
            case "qvm-features", name, feature if "--unset" in options:
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
                await hostapi.clone_vm(app.domains[name], copy, options["-P"])
            case "qvm-remove", name:
                await hostapi.remove_vm(app.domains[name])
            case "qvm-volume", operation, target, *more:
                vm, _, volume = target.partition(":")
                return await self._volume(
                    operation, app.domains[vm], volume, *more
                )
            case _:
                raise ValueError(words)

    async def _volume(self, operation, vm, name, argument=None, value=None):
        if operation == "import":
            size = os.path.getsize(argument)
            await hostapi.import_file(vm, name, argument, size)
        elif operation == "revert":
            last = list(hostapi.list_snapshots(vm, name))[-1:]
            await hostapi.revert(vm, name, argument or last[0])
        elif operation == "resize":
            number, unit = argument[:-3], {"MiB": 20, "GiB": 30}[argument[-3:]]
            await hostapi.resize(vm, name, int(number) << unit)
        elif operation == "config":
            change = {
                "revisions_to_keep": hostapi.set_revisions_to_keep,
                "ephemeral": hostapi.set_ephemeral,
            }[argument]
            change(vm, name, int(value) if value.isdecimal() else value)
        elif operation == "info":
            for key, value in hostapi.volume_info(vm, name).items():
                if key != "path":
                    print(f"{key:18}{value}")
            revisions = hostapi.list_snapshots(vm, name)
            none = "" if revisions else " none"
            print(f"List of available revisions (for revert):{none}")
            for revision in revisions:
                print(f"  {revision}")
            return revisions
