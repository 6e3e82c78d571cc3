# SPDX-License-Identifier: BSD-2-Clause
"""The Debian package of the prompt, for a GUI domain."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .world import NAME, PROJECT, SERVICE, run

PACKAGE = f"{NAME}-askpassword"
DOC = f"/usr/share/doc/{PACKAGE}"


def _build(folder: Path) -> Path:
    run("make", "-s", "-C", PROJECT, "deb", f"DIST={folder}")
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return _build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def unpacked(package, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "--extract", package, folder)
    return folder


def _field(package: Path, name: str) -> str:
    return run("dpkg-deb", "--field", package, name).stdout.strip()


def test_version_is_that_of_the_sources(package) -> None:
    version = (PROJECT / "version").read_text().strip()
    assert package.name == f"{PACKAGE}_{version}-1_all.deb"


def test_dependencies(package) -> None:
    assert _field(package, "Depends") == "python3 (>= 3.11), qubes-core-qrexec"
    recommended = set(_field(package, "Recommends").split(" | "))
    assert {"zenity", "kdialog", "pinentry-qt"} <= recommended


def test_package_has_only_the_service(package) -> None:
    """No script runs when the package is installed or removed."""
    listing = run("dpkg-deb", "--contents", package).stdout.splitlines()
    modes = {}
    for line in listing:
        mode, user, *_, path = line.split()
        assert user == "root/root", line
        if not mode.startswith("d"):
            modes[path.removeprefix(".")] = mode
    assert modes == {
        SERVICE: "-rwxr-xr-x",
        f"{DOC}/changelog.Debian.gz": "-rw-r--r--",
        f"{DOC}/changelog.gz": "-rw-r--r--",
        f"{DOC}/copyright": "-rw-r--r--",
    }
    control = run("dpkg-deb", "--info", package).stdout
    control_files = set(re.findall(r"\d+ lines +(\S+)", control))
    assert control_files == {"conffiles", "control", "md5sums"}


def test_the_service_is_that_of_dom0(tree, unpacked) -> None:
    service = unpacked / SERVICE.lstrip("/")
    source = tree / "dom0/qubes-rpc/qubes.AskPassword"
    assert service.read_bytes() == source.read_bytes()
    done = subprocess.run(
        [sys.executable, "-I", service, "unlock"],
        input=b"not a request\n",
        capture_output=True,
    )
    assert done.returncode == 3, done.stderr


def test_licence_is_that_of_the_sources(tree, unpacked) -> None:
    text = (unpacked / DOC.lstrip("/") / "copyright").read_text()
    _, _, conditions = (tree / "LICENSE").read_text().partition("\n\nRedist")
    words = re.sub(r"(?m)^ \.?$", "", text).split()
    assert " ".join(words).endswith(" ".join(f"Redist{conditions}".split()))


def test_builds_are_reproducible(package, tmp_path) -> None:
    assert _build(tmp_path).read_bytes() == package.read_bytes()
