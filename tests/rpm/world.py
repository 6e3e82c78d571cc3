# SPDX-License-Identifier: BSD-2-Clause
"""Empty roots into which rpm installs packages, with their scriptlets.

Stubs without files stand in for the packages that ours require.  The shell and
sed, which scriptlets run, are those of the host.
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
#: the version of a later release, for upgrades
NEWER = "99.0.0"
SITE = "/usr/lib/python{}.{}/site-packages".format(*sys.version_info[:2])
POLICY = "/etc/qubes/policy.d/30-qubes-storage-zfs.policy"
QUBES_XML = "var/lib/qubes/qubes.xml"
SERVICE = "/etc/qubes-rpc/qubes.AskPassword"
DROP_IN = "/usr/lib/systemd/system/qubesd.service.d/30-qubes-storage-zfs.conf"
UNIT = "/usr/lib/systemd/system/qubes-storage-zfs-import.service"
#: GID of the group qubes in roots; any but that of root
QUBES = 98

# chroot is in /usr/sbin, which is not in the PATH of each user
os.environ["PATH"] += ":/usr/sbin:/sbin"

#: rpm needs root for chroot
AS_ROOT = [] if os.geteuid() == 0 else ["sudo"]

#: what a stub provides in place of the packages of a system
BASE = ", ".join(
    [
        "/bin/sh, /usr/bin/python3, python3 = 3.13.0, sed, util-linux",
        "python(abi) = {}.{}".format(*sys.version_info[:2]),
        "qubes-core-qrexec = 4.3.0",
    ]
)
#: packages of dom0 alone, with their versions
DOM0 = {
    "qubes-core-dom0": "4.3.0",
    "zfs": "2.4.1",
    "python3-pyzfs": "2.4.1",
}
#: stand-ins that scriptlets would run; each records its arguments
INTERCEPTED = ("systemctl", "modprobe", "zpool", "zfs", "qvm-pool", "udevadm")


def run(*argv: object, **more) -> subprocess.CompletedProcess:
    """Run a program; fail the test with its output if it fails."""
    done = attempt(*argv, **more)
    assert done.returncode == 0, done.stdout
    return done


def attempt(*argv: object, **more) -> subprocess.CompletedProcess:
    """Run a program; return it with output and errors in one text."""
    more.setdefault("stderr", subprocess.STDOUT)
    return subprocess.run(
        [str(word) for word in argv],
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


@functools.cache
def _work_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="rpm-tests-"))


@functools.cache
def stub(name: str, version: str, provides: str = "") -> Path:
    """Build a package without files once; return it."""
    folder = _work_folder() / f"{name}-{version}-{abs(hash(provides))}"
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
    shutil.rmtree(_work_folder())


def base(provides: str = BASE) -> Path:
    return stub("base", "1", provides)


def dom0(**versions: str | None) -> list[Path]:
    """Return stubs for the packages of dom0.

    :param versions: other versions, with "_" for "-"; None: without the package
    """
    chosen = {
        name.replace("_", "-"): version for name, version in versions.items()
    }
    return [base()] + [
        stub(name, version)
        for name, version in {**DOM0, **chosen}.items()
        if version is not None
    ]


def build(tarball: Path, folder: Path) -> dict[str, Path]:
    """Build the packages of a tarball; return them by name.

    The names of source packages end in ".src".
    """
    run(PROJECT / "rpm_spec/build", tarball, folder)
    packages = {}
    for package in folder.glob("*.rpm"):
        kind = package.name.split(".")[-2]
        name = re.sub(r"-[^-]*-[^-]*\Z", "", package.name)
        packages[f"{name}.src" if kind == "src" else name] = package
    return packages


def binary_packages(packages: dict[str, Path]) -> list[Path]:
    """Return the binary packages of those that build() returned."""
    return [
        package
        for name, package in packages.items()
        if not name.endswith(".src")
    ]


def query(package: Path, *options: str) -> list[str]:
    """Query a package file; return the lines that rpm prints."""
    rpm = ["rpm", "--dbpath", _work_folder() / "db", "-qp"]
    return run(*rpm, *options, package).stdout.splitlines()


class Root:
    """An empty system, with a shell for scriptlets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in "etc", "var/lib/qubes", "dev", "bin", "sbin", "tmp":
            (folder / name).mkdir(parents=True)
        (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (folder / "etc/group").write_text(f"root:x:0:\nqubes:x:{QUBES}:\n")
        # a plain file is enough; a device node would need root
        (folder / "dev/null").touch()
        (folder / "dev/null").chmod(0o666)
        for program in "bash", "sed":
            self._copy_program(program)
        shutil.copy(folder / "bin/bash", folder / "bin/sh")
        for name in INTERCEPTED:
            stand_in = folder / "sbin" / name
            stand_in.write_text(f'#!/bin/sh\necho {name} "$@" >>/ran\n')
            stand_in.chmod(0o755)
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
        # on Debian, rpm first prints a hint to use alien
        done.stdout = re.sub(r"(?m)^rpm: .*\n", "", done.stdout)
        return done

    def rpm(self, *arguments: object) -> str:
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def has(self, name: str) -> bool:
        return self.attempt("-q", name).returncode == 0

    def ran(self) -> list[str]:
        """Return the commands of INTERCEPTED that scriptlets ran."""
        log = self / "ran"
        return log.read_text().splitlines() if log.exists() else []

    def files(self) -> set[str]:
        """Return all files, except those of rpm's database."""
        listing = run(
            *(*AS_ROOT, "find", self.folder, "-not", "-type", "d"),
            *("-not", "-path", "*/var/lib/rpm/*", "-printf", "/%P\n"),
        )
        return set(listing.stdout.splitlines())

    def write(self, path: str, text: str) -> None:
        run(*AS_ROOT, "tee", self / path, input=text)

    def shell(self, script: str, *options: str) -> str:
        """Run a script with the root's own bash and programs."""
        return run(
            *(*AS_ROOT, "chroot", *options, self.folder),
            *("/bin/bash", "--norc", "-uc", script),
        ).stdout
