# SPDX-License-Identifier: BSD-2-Clause
"""One dom0 for all tests here; they run in the guest (make test-qubesd)."""

import os
from pathlib import Path

import pytest

from .dom0 import LOG, MIB, OUT, ROOT, Dom0, ends, tell, zfs

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


def pytest_terminal_summary(terminalreporter):
    if not READY.exists():
        return
    found = [
        f"{name} {Path('/', name, 'version').read_text('ascii').strip()}"
        for name in ("core-admin", "core-admin-client", "core-qrexec")
    ]
    (openzfs,) = Path("/sys/module/zfs/version").read_text("ascii").split()
    terminalreporter.write_line(f"OpenZFS {openzfs}, {', '.join(found)}")
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
    """A pool with a template, whose root volume begins with ROOT."""
    tell("\n### the pool plain, and the template tmpl in it")
    option = "container=tank/plain"
    dom0.run("qvm-pool", "add", "-o", option, "plain", "zfs_zvol")
    create = ("qvm-create", "-l", "black", "-P", "plain")
    dom0.run(*create, "-C", "TemplateVM", "tmpl")
    dom0.give("tmpl:root", ROOT.ljust(8 * MIB, b"\0"))
    dom0.run("qubes-prefs", "default_template", "tmpl")
    return "plain"


@pytest.fixture(autouse=True)
def told(dom0, request):
    """Each test begins with its name; none leaves a traceback of ours."""
    tell(f"\n### {request.node.name}")
    if dom0.process.poll() is not None:
        dom0.start()
    dom0.new_log()
    yield
    for end in ends(dom0.new_log()):
        assert end.startswith("qubes.exc."), f"{LOG}: {end}"
