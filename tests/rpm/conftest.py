# SPDX-License-Identifier: BSD-2-Clause
"""The sources and packages that these tests are about, built once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .world import NAME, NEWER, PROJECT, Root, build, dom0, ours, run, tidy

NEEDED = ("rpmbuild", "rpm", "man", "git", "make", "ldd", "dh")


@pytest.fixture(scope="session", autouse=True)
def tools() -> Iterator[None]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.fail(
            f"Not installed: {', '.join(missing)}; run 'tests/vm/prepare rpm'."
        )
    yield
    tidy()


@pytest.fixture(scope="session")
def tarball(tools, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("make", "-s", "-C", PROJECT, "dist", f"DIST={folder}")
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def tree(tarball, tmp_path_factory) -> Path:
    """The sources; what is built is built from these."""
    folder = tmp_path_factory.mktemp("tree")
    run("tar", "-xzf", tarball, "-C", folder)
    return folder / tarball.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def packages(tarball, tmp_path_factory) -> dict[str, Path]:
    return build(tarball, tmp_path_factory.mktemp("rpms"))


@pytest.fixture(scope="session")
def newer(tree, tmp_path_factory) -> dict[str, Path]:
    """The same as a later version."""
    folder = tmp_path_factory.mktemp("newer")
    copy = folder / f"{NAME}-{NEWER}"
    shutil.copytree(tree, copy)
    (copy / "version").write_text(f"{NEWER}\n")
    run("tar", "-czf", f"{copy}.tar.gz", "-C", folder, copy.name)
    return build(Path(f"{copy}.tar.gz"), folder)


@pytest.fixture
def empty(tmp_path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Root:
    """dom0 with our packages; a test leaves it as it was."""
    root = Root(tmp_path_factory.mktemp("dom0") / "root")
    root.rpm("-i", *dom0())
    root.first = root.rpm("-i", *ours(packages))
    return root
