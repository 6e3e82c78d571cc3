# SPDX-License-Identifier: BSD-2-Clause
"""Roots that rpm really installs into, dependencies and scriptlets included.

In place of what our packages require there are stubs without files, but for
the shell and sed, which scriptlets run: those are the host's.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NAME = "qubes-storage-zfs"
#: the version of a later release
NEWER = "99.0.0"
SITE = "/usr/lib/python{}.{}/site-packages".format(*sys.version_info[:2])
POLICY = "/etc/qubes/policy.d/30-qubes-storage-zfs.policy"
QUBES_XML = "var/lib/qubes/qubes.xml"
SERVICE = "/etc/qubes-rpc/qubes.AskPassword"
DROP_IN = "/usr/lib/systemd/system/qubesd.service.d/30-qubes-storage-zfs.conf"
UNIT = "/usr/lib/systemd/system/qubes-storage-zfs-import.service"
#: gid of the group qubes in roots; any but root's
QUBES = 98

# where chroot is, which not every user finds
os.environ["PATH"] += ":/usr/sbin:/sbin"

#: rpm changes its root
AS_ROOT = [] if os.geteuid() == 0 else ["sudo"]

#: what a system has, as a stub of one package
BASE = ", ".join(
    [
        "/bin/sh, /usr/bin/python3, python3 = 3.13.0, sed, util-linux",
        "python(abi) = {}.{}".format(*sys.version_info[:2]),
        "qubes-core-qrexec = 4.3.0",
    ]
)
#: the rest of dom0
DOM0 = {
    "qubes-core-dom0": "4.3.0",
    "zfs": "2.4.1",
    "python3-pyzfs": "2.4.1",
}
#: scriptlets find these before any real one, and so are caught running them
CAUGHT = ("systemctl", "modprobe", "zpool", "zfs", "qvm-pool", "udevadm")


def run(*argv: object, **more) -> subprocess.CompletedProcess:
    """Run to its end; if it fails, so does the test, with what it said."""
    done = attempt(*argv, **more)
    assert done.returncode == 0, done.stdout
    return done


def attempt(*argv: object, **more) -> subprocess.CompletedProcess:
    """Run to its end; output and errors come in one text."""
    more.setdefault("stderr", subprocess.STDOUT)
    return subprocess.run(
        [str(word) for word in argv],
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


@functools.cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="rpm-tests-"))


@functools.cache
def stub(name: str, version: str, provides: str = "") -> Path:
    """A package of that name and version, built once."""
    folder = _scratch() / f"{name}-{version}-{abs(hash(provides))}"
    macros = {"_topdir": folder, "_rpmdir": folder, "_dbpath": folder}
    macros |= {"stub": name, "stub_version": version}
    if provides:
        macros["stub_provides"] = provides
    defines = []
    for macro, value in macros.items():
        defines += ["--define", f"{macro} {value}"]
    spec = Path(__file__).with_name("stub.spec")
    run("rpmbuild", "--quiet", "-bb", *defines, spec)
    (package,) = folder.rglob("*.noarch.rpm")
    return package


def tidy() -> None:
    shutil.rmtree(_scratch())


def base(provides: str = BASE) -> Path:
    return stub("base", "1", provides)


def dom0(**versions: str | None) -> list[Path]:
    """Stubs of dom0; *versions* for others, None: without it.

    Names are given with "_" for "-".
    """
    given = {name.replace("_", "-"): one for name, one in versions.items()}
    return [base()] + [
        stub(name, version)
        for name, version in {**DOM0, **given}.items()
        if version is not None
    ]


def build(tarball: Path, folder: Path) -> dict[str, Path]:
    """Build the packages of a tarball; return them by name.

    The names of source packages end in ".src".
    """
    run(PROJECT / "rpm_spec/build", tarball, folder)
    found = {}
    for package in folder.glob("*.rpm"):
        kind = package.name.split(".")[-2]
        name = re.sub(r"-[^-]*-[^-]*\Z", "", package.name)
        found[f"{name}.src" if kind == "src" else name] = package
    return found


def ours(packages: dict[str, Path]) -> list[Path]:
    """Return the binary packages of those that build() returned."""
    return [
        package
        for name, package in packages.items()
        if not name.endswith(".src")
    ]


def query(package: Path, *options: str) -> list[str]:
    """What rpm says of a package that is not installed, in lines."""
    rpm = ["rpm", "--dbpath", _scratch() / "db", "-qp"]
    return run(*rpm, *options, package).stdout.splitlines()


class Root:
    """An empty system, with a shell for scriptlets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for one in "etc", "var/lib/qubes", "dev", "bin", "sbin", "tmp":
            (folder / one).mkdir(parents=True)
        (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (folder / "etc/group").write_text(f"root:x:0:\nqubes:x:{QUBES}:\n")
        # who writes to it loses nothing; a device would need root
        (folder / "dev/null").touch()
        (folder / "dev/null").chmod(0o666)
        for program in "bash", "sed":
            self._copy_program(program)
        shutil.copy(folder / "bin/bash", folder / "bin/sh")
        for name in CAUGHT:
            caught = folder / "sbin" / name
            caught.write_text(f'#!/bin/sh\necho {name} "$@" >>/ran\n')
            caught.chmod(0o755)
        self.rpm("--initdb")

    def _copy_program(self, name: str) -> None:
        program = shutil.which(name)
        assert program, f"{name} is not installed here"
        shutil.copy(program, self.folder / "bin" / name)
        for library in re.findall(r"(/\S+) \(0x", run("ldd", program).stdout):
            place = self.folder / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)

    def __truediv__(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def attempt(self, *arguments: object) -> subprocess.CompletedProcess:
        rpm = ["rpm", "--root", self.folder, "--dbpath", "/var/lib/rpm"]
        done = attempt(*AS_ROOT, *rpm, *arguments)
        # on Debian rpm says first that alien is for that
        done.stdout = re.sub(r"(?m)^rpm: .*\n", "", done.stdout)
        return done

    def rpm(self, *arguments: object) -> str:
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def has(self, name: str) -> bool:
        return self.attempt("-q", name).returncode == 0

    def ran(self) -> list[str]:
        """What scriptlets did run of CAUGHT."""
        log = self / "ran"
        return log.read_text().splitlines() if log.exists() else []

    def files(self) -> set[str]:
        """All that is no folder, but for rpm's own."""
        found = run(
            *(*AS_ROOT, "find", self.folder, "-not", "-type", "d"),
            *("-not", "-path", "*/var/lib/rpm/*", "-printf", "/%P\n"),
        )
        return set(found.stdout.splitlines())

    def write(self, path: str, text: str) -> None:
        run(*AS_ROOT, "tee", self / path, input=text)

    def shell(self, script: str, *options: str) -> str:
        """Run a script of bash in it, with only what is in it."""
        return run(
            *(*AS_ROOT, "chroot", *options, self.folder),
            *("/bin/bash", "--norc", "-uc", script),
        ).stdout
