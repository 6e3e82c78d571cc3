# SPDX-License-Identifier: BSD-2-Clause
"""Tarball, wheel and manual, built from the sources without rpm."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .world import NAME, PROJECT, attempt, run


def _names(tarball: Path) -> set[str]:
    listing = run("tar", "-tzf", tarball).stdout
    return {name.partition("/")[2] for name in listing.splitlines()}


def test_tarball_has_all_tracked_files(tarball) -> None:
    listed = run("git", "-C", PROJECT, "ls-files", "-z").stdout.split("\0")
    names = _names(tarball)
    for name in filter(None, listed):
        assert name in names or not (PROJECT / name).exists(), name
    assert not [name for name in names if name.startswith(("dist/", ".git/"))]
    version = (PROJECT / "version").read_text().strip()
    assert tarball.name == f"{NAME}-{version}.tar.gz"


def _wheel(tarball: Path, folder: Path, umask: int, spoil: bool) -> Path:
    folder.mkdir()
    run("tar", "-xzf", tarball, "-C", folder, umask=umask)
    (tree,) = folder.iterdir()
    if spoil:
        old = tree / "build/lib/qubes_storage_zfs/gone.py"
        old.parent.mkdir(parents=True)
        old.touch()
        for path in (tree / "qubes_storage_zfs").rglob("*.py"):
            os.utime(path)
    environ = {**os.environ, "PYTHON": sys.executable}
    environ.pop("SOURCE_DATE_EPOCH", None)
    run("make", "-s", "-C", tree, "build", env=environ, umask=umask)
    (wheel,) = (tree / "build/wheel").glob("*.whl")
    return wheel


def test_wheel_builds_are_reproducible(tarball, tmp_path) -> None:
    """Neither folder, time, umask nor an earlier build changes the wheel."""
    first = _wheel(tarball, tmp_path / "one", 0o022, spoil=False)
    second = _wheel(tarball, tmp_path / "other-name", 0o077, spoil=True)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    version = (PROJECT / "version").read_text().strip()
    assert tops == {
        "qubes_storage_zfs",
        f"qubes_storage_zfs-{version}.dist-info",
    }


PAGES = sorted(path.stem for path in PROJECT.glob("doc/manpages/*.rst"))


@pytest.mark.parametrize("page", PAGES)
def test_manual_page_builds_without_warnings(page, tmp_path) -> None:
    section = "1" if page.startswith("qvm-") else "7"
    made = f"build/man{section}/{page}.{section}"
    folder = tmp_path / "doc/manpages"
    folder.mkdir(parents=True)
    source = (PROJECT / f"doc/manpages/{page}.rst").read_text()
    (folder / f"{page}.rst").write_text(source)
    (tmp_path / "version").write_text("0\n")
    make = ["make", "-s", "-C", tmp_path, "-f", PROJECT / "Makefile", made]
    assert run(*make, f"PYTHON={sys.executable}").stdout == ""
    titles = re.findall(r"^\.TH (.*)$", (tmp_path / made).read_text(), re.M)
    assert [title.split()[:2] for title in titles] == [
        [f'"{page.upper()}"', f'"{section}"']
    ]
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    man = ["man", "--warnings", "-l", tmp_path / made]
    shown = run(*man, env=environ, stderr=subprocess.PIPE)
    assert shown.stderr == ""
    assert f"\n       {page} - " in shown.stdout

    (folder / f"{page}.rst").write_text(source + "\n.. nonsense::\n")
    assert attempt(*make, f"PYTHON={sys.executable}").returncode != 0


def test_the_command_has_a_manual_page() -> None:
    assert "qvm-zfs" in PAGES


def _yaml(name: str) -> dict:
    import yaml

    return yaml.safe_load((PROJECT / name).read_text())


def test_qubes_builder_builds_the_right_packages() -> None:
    """dom0 gets both packages, a qube only the prompt."""
    listed = _yaml(".qubesbuilder")
    main, ask = (
        f"rpm_spec/{name}.spec" for name in (NAME, f"{NAME}-askpassword")
    )
    assert listed["host"] == {"rpm": {"build": [main, ask]}}
    assert listed["vm"] == {
        "rpm": {"build": [ask]},
        "deb": {"build": ["debian"]},
    }
    specs = {path.name for path in (PROJECT / "rpm_spec").glob("*.spec.in")}
    assert specs == {f"{Path(spec).name}.in" for spec in (main, ask)}


def test_ci_of_qubes_builds_the_same_packages() -> None:
    included = {
        Path(entry["file"]).stem: entry["project"]
        for entry in _yaml(".gitlab-ci.yml")["include"]
    }
    kinds = {"base", "host", "vm-fedora", "vm-debian"}
    assert set(included) == {f"gitlab-{kind}" for kind in kinds}
    assert set(included.values()) == {"QubesOS/qubes-continuous-integration"}
