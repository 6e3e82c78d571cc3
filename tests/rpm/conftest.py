# SPDX-License-Identifier: BSD-2-Clause
"""The sources and packages for these tests, built once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .world import (
    NAME,
    NEWER,
    PROJECT,
    Root,
    binary_packages,
    build,
    dom0,
    run,
    tidy,
)

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
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def tree(tarball, tmp_path_factory) -> Path:
    """Unpack the sources that everything is built from."""
    folder = tmp_path_factory.mktemp("tree")
    run("tar", "-xzf", tarball, "-C", folder)
    return folder / tarball.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def packages(tarball, tmp_path_factory) -> dict[str, Path]:
    return build(tarball, tmp_path_factory.mktemp("rpms"))


@pytest.fixture(scope="session")
def newer(tree, tmp_path_factory) -> dict[str, Path]:
    """Build the packages again, as a later version."""
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
    """Install the packages in a dom0; a test must not change it."""
    root = Root(tmp_path_factory.mktemp("dom0") / "root")
    root.rpm("-i", *dom0())
    root.first = root.rpm("-i", *binary_packages(packages))
    return root
