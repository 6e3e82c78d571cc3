# SPDX-License-Identifier: BSD-2-Clause
"""One dom0 for all tests here, in the guest (make test-qubesd)."""

import os
from pathlib import Path

import pytest

from .dom0 import LOG, MIB, OUT, ROOT, Dom0, driver_errors, record, zfs

INSTALLED = Path("/etc/qubes-release")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    if os.environ.get("QUBESD_TESTS") and INSTALLED.exists():
        return
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(
                pytest.mark.skip(
                    reason="only make test-qubesd runs a real qubesd"
                )
            )


def pytest_terminal_summary(terminalreporter):
    if not INSTALLED.exists():
        return
    versions = [
        f"{name} {Path('/', name, 'version').read_text('ascii').strip()}"
        for name in ("core-admin", "core-admin-client", "core-qrexec")
    ]
    (openzfs,) = Path("/sys/module/zfs/version").read_text("ascii").split()
    terminalreporter.write_line(f"OpenZFS {openzfs}, {', '.join(versions)}")
    terminalreporter.write_line(f"all commands are in {OUT} (VM_OUT/qubesd)")


@pytest.fixture(scope="session")
def dom0():
    machine = Dom0()
    zfs("zpool", "create", "-m", "none", "tank", "/dev/vdb")
    machine.start()
    machine.run("qubes-prefs", "default_kernel", "6.6.1")
    yield machine
    machine.end_all()


@pytest.fixture(scope="session")
def plain(dom0):
    """Create a pool and a template whose root volume starts with ROOT."""
    record("\n### the pool plain, and the template tmpl in it")
    option = "container=tank/plain"
    dom0.run("qvm-pool", "add", "-o", option, "plain", "zfs_zvol")
    create = ("qvm-create", "-l", "black", "-P", "plain")
    dom0.run(*create, "-C", "TemplateVM", "tmpl")
    dom0.import_file("tmpl:root", ROOT.ljust(8 * MIB, b"\0"))
    dom0.run("qubes-prefs", "default_template", "tmpl")
    return "plain"


@pytest.fixture(autouse=True)
def check_log(dom0, request):
    """Log the name of each test; fail it if the driver had an unknown error."""
    record(f"\n### {request.node.name}")
    if dom0.process.poll() is not None:
        dom0.start()
    dom0.new_log()
    yield
    for end in driver_errors(dom0.new_log()):
        assert end.startswith("qubes.exc."), f"{LOG}: {end}"
