"""qvm-features and qvm-tags, with the package's extension in qubesd."""

import pytest


@pytest.fixture(scope="module")
def qube(dom0, plain):
    dom0.run("qvm-create", "-P", plain, "-l", "red", "-t", "tmpl", "marked")
    yield "marked"
    dom0.run("qvm-remove", "-f", "marked")


def test_a_feature_is_set_and_unset(dom0, qube):
    dom0.run("qvm-features", qube, "some.feature", "1")
    assert dom0.run("qvm-features", qube, "some.feature") == "1\n"
    dom0.run("qvm-start", qube)
    dom0.run("qvm-features", qube, "some.feature", "2")
    dom0.run("qvm-kill", qube)
    dom0.run("qvm-features", "--unset", qube, "some.feature")
    assert "some.feature" not in dom0.run("qvm-features", qube)


def test_a_tag_is_added_and_deleted(dom0, qube):
    dom0.run("qvm-tags", qube, "add", "mine")
    assert "mine" in dom0.run("qvm-tags", qube, "list").split()
    dom0.run("qvm-tags", qube, "del", "mine")
    assert "mine" not in dom0.run("qvm-tags", qube, "list").split()
