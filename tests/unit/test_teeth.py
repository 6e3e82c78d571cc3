# SPDX-License-Identifier: BSD-2-Clause
"""The faults of tests/teeth still fit the code they are put into."""

import pytest

from tests.teeth.__main__ import is_noticed
from tests.teeth.faults import FAULTS, TREE


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_that_a_fault_replaces_occurs_once(fault) -> None:
    text = fault.place().read_text("utf-8")
    assert text.count(fault.right) == 1
    assert fault.wrong != fault.right


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_of_a_fault_exist(fault) -> None:
    for test in fault.tests:
        file, _, name = test.partition("::")
        text = (TREE / file).read_text("utf-8")
        assert not name or f"def {name}(" in text


@pytest.mark.parametrize(
    ("status", "line", "noticed"),
    [
        (1, "1 failed, 2 passed in 3.10s", True),
        (1, "1 failed, 1 error in 3.10s", True),
        (1, "1 passed, 1 error in 5.61s", False),
        (1, "1 error in 4.15s", False),
        (0, "3 passed in 4.15s", False),
        (2, "no tests ran: 1 failed to load", False),
    ],
)
def test_only_a_failed_test_notices_a_fault(status, line, noticed) -> None:
    assert is_noticed(status, line) is noticed
