# SPDX-License-Identifier: BSD-2-Clause
"""The faults of tests/teeth still fit the code they are put into."""

import pytest

from tests.teeth.faults import FAULTS, TREE


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_has_its_place(fault) -> None:
    text = fault.place().read_text("utf-8")
    assert text.count(fault.right) == 1
    assert fault.wrong != fault.right


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_that_should_notice_are_there(fault) -> None:
    for test in fault.tests:
        file, _, name = test.partition("::")
        text = (TREE / file).read_text("utf-8")
        assert not name or f"def {name}(" in text
