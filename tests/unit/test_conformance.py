# SPDX-License-Identifier: BSD-2-Clause
"""The stand-in for core-admin behaves like a real checkout.

Set QUBES_CORE_ADMIN to the checkout; lxml, jinja2, PyYAML and docutils have
to be installed.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HOST = pathlib.Path(__file__).resolve().parents[1] / "host"
CHECKOUT = os.environ.get("QUBES_CORE_ADMIN")
#: whether the checkout is core-admin of Qubes OS 4.3
IS_R43 = CHECKOUT is not None and pathlib.Path(CHECKOUT, "version").read_text(
    "ascii"
).startswith("4.3.")

pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="QUBES_CORE_ADMIN names no core-admin checkout"
)

#: helpers of the stand-in that the real package does not have
OWN = {
    "utils": {"register_entry_point", "entry_point_names"},
    "Volume": {"_is_volatile", "_mapped_name"},
}
if IS_R43:
    # newer than 4.3, or with a renamed parameter; the driver uses none of them
    OWN["exceptions"] = {
        *("QubesVMAlreadyExistsError", "QubesPoolInUseError"),
        *("QubesPoolNotFoundError", "QubesVolumeNotFoundError"),
        "QubesVolumeRevisionNotFoundError",
    }
#: members of the real classes that the stand-in leaves out
LEFT_OUT = {
    "Pool": {"__neq__"},
    "Volume": {"__neq__"},
    "Storage": {
        *("AVAILABLE_FRONTENDS", "used_frontends", "unused_frontend"),
        *("attach", "detach", "_is_already_attached", "kernels_dir"),
    },
}


def probe(package_dir):
    """Return the report of the probe on the qubes package in *package_dir*."""
    env = dict(os.environ, PYTHONPATH=str(package_dir))
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["QUBES_STAND_IN"] = "4.3" if IS_R43 else ""
    done = subprocess.run(
        [sys.executable, "-P", str(HOST / "conformance_probe.py")],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert os.path.samefile(
        report["package"], pathlib.Path(package_dir) / "qubes"
    )
    return report


@pytest.fixture(scope="module", name="ours")
def fixture_ours():
    """Return the report on the stand-in."""
    return probe(HOST)


@pytest.fixture(scope="module", name="real")
def fixture_real():
    """Return the report on the real package."""
    return probe(CHECKOUT)


@pytest.mark.parametrize("group", ["utils", "helpers", "exceptions"])
def test_signatures_match(ours, real, group):
    """Functions, and exceptions with their base classes, are the same."""
    mine = ours["code"][group]
    assert mine
    for name in set(mine) - OWN.get(group, set()):
        assert mine[name] == real["code"][group].get(name), name


def test_storage_helpers_are_complete(ours, real):
    """No function or constant of qubes.storage is left out."""
    for group in "helpers", "constants":
        assert ours["code"][group] == real["code"][group]


@pytest.mark.parametrize(
    "name", ["Pool", "Volume", "Storage", "VolumesCollection", "BlockDevice"]
)
def test_members_match(ours, real, name):
    """Classes have the same members with the same signatures."""
    mine = ours["code"]["classes"][name]
    theirs = real["code"]["classes"][name]
    for member in set(mine) - OWN.get(name, set()):
        assert mine[member] == theirs.get(member), member
    assert set(theirs) - set(mine) == LEFT_OUT.get(name, set())


def test_values_match(ours, real):
    """Configs, XML attributes, conversions and comparisons are the same."""
    assert len(real["values"]) > 50
    assert ours["values"] == real["values"]


@pytest.mark.parametrize("part", ["concurrency", "encrypted"])
def test_calls_match(ours, real, part):
    """Coroutines interleave and encrypted volumes start in the same way."""
    assert len(real[part]) > 10
    assert ours[part] == real[part]


def test_operations_of_a_qube_match(ours, real):
    """Operations make the same calls and errors, with any injected failure."""
    assert len(real["lives"]) > 30
    assert ours["lives"].keys() == real["lives"].keys()
    for label, events in real["lives"].items():
        assert len(events) > 100, label
        assert ours["lives"][label] == events, label
    injected = [
        event
        for events in real["lives"].values()
        for event in events
        if event.startswith("fail ")
    ]
    assert len(injected) > 30
