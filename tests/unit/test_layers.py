# SPDX-License-Identifier: BSD-2-Clause
"""The layers of the package: imports point down only."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "qubes_storage_zfs"
#: layer -> the layers that it may import, besides itself
MAY_IMPORT = {
    "zfs": set(),
    "store": {"zfs"},
    "migrate": {"store", "zfs"},
    "driver": {"store", "zfs"},
    "tools": {"migrate", "store", "zfs"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in MODULES}


def base_of(path, node):
    """Return the module that a relative import starts from."""
    package = path.relative_to(PACKAGE).parent.parts
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *filter(None, [node.module])])


def imports(path):
    """Return our modules, and top packages of others, that *path* imports.

    Imports under TYPE_CHECKING and in functions count, too.
    """
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = base_of(path, node)
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                ours.add(name if name in NAMES else base)
    return ours, others


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    layer = name_of(path).partition(".")[0]
    ours, others = imports(path)
    if path.parent == PACKAGE:
        return
    used = {name.partition(".")[0] for name in ours} - {layer}
    assert used <= MAY_IMPORT[layer]
    assert layer == "driver" or "qubes" not in others
    assert layer == "tools" or "qubesadmin" not in others


def test_one_module_imports_libzfs_core():
    """It imports by name and late, because the module may be missing."""
    users = {
        name_of(path)
        for path in MODULES
        if '"libzfs_core"' in path.read_text("utf-8")
    }
    assert users == {"zfs.lzc"}


def test_no_import_cycle():
    graph = {name_of(path): imports(path)[0] for path in MODULES}
    finished, open_now = set(), []

    def visit(name):
        assert name not in open_now, [*open_now, name]
        if name in finished:
            return
        open_now.append(name)
        for other in sorted(graph[name]):
            visit(other)
        open_now.pop()
        finished.add(name)

    for name in sorted(graph):
        visit(name)


def test_the_design_lists_every_module():
    page = (PACKAGE.parent / "doc/design.md").read_text("utf-8")
    tree = page.partition("\nqubes_storage_zfs/\n")[2].partition("```")[0]
    listed = {
        layer: set(re.findall(r"\w+", text))
        for layer, text in re.findall(
            r"^  (\w+)/ (.*(?:\n    .*)*)", tree, re.M
        )
    }
    assert listed.keys() == MAY_IMPORT.keys()
    for name in NAMES:
        layer, _, module = name.partition(".")
        assert not module or module in listed[layer], name
