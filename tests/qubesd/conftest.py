"""One dom0 for all tests here; they run in the guest (make test-qubesd)."""

import os
import subprocess
from pathlib import Path

import pytest

from .dom0 import LOG, Dom0, tell

READY = Path("/etc/qubes-release")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    if os.environ.get("QUBESD_TESTS") and READY.exists():
        return
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(
                pytest.mark.skip(
                    reason="a real qubesd is run by make test-qubesd alone"
                )
            )


@pytest.fixture(scope="session")
def dom0():
    machine = Dom0()
    subprocess.run(
        ["zpool", "create", "-m", "none", "tank", "/dev/vdb"], check=True
    )
    machine.start()
    machine.run("qubes-prefs", "default_kernel", "6.6.1")
    yield machine
    if machine.process.poll() is None:
        machine.stop()


@pytest.fixture(autouse=True)
def told(dom0, request):
    """Each test begins with its name; none leaves a traceback of ours."""
    tell(f"\n### {request.node.name}")
    dom0.new_log()
    yield
    for trace in dom0.new_log().split("Traceback (most recent")[1:]:
        assert "qubes_storage_zfs" not in trace, f"{LOG}: {trace[:4000]}"
