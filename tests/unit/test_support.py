# SPDX-License-Identifier: BSD-2-Clause
"""The place of code that several tests use."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CONFTESTS = sorted(TESTS.rglob("conftest.py"))


def test_no_module_imports_from_a_test_or_a_conftest() -> None:
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = (node.module or "").rpartition(".")[2]
                assert not module.startswith(("test_", "conftest")), path


@pytest.mark.parametrize(
    "path", CONFTESTS, ids=[path.parent.name for path in CONFTESTS]
)
def test_a_conftest_has_only_fixtures_and_hooks(path) -> None:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            decorators = " ".join(map(ast.unparse, node.decorator_list))
            is_hook = node.name.startswith("pytest_")
            assert is_hook or "pytest.fixture" in decorators, node.name
        assert not isinstance(node, ast.ClassDef), node.name
