# SPDX-License-Identifier: BSD-2-Clause
"""Properties of the package that need neither ZFS nor pyzfs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import qubes.exc

from qubes_storage_zfs import ZfsZvolPool
from qubes_storage_zfs.driver import errors, prompts
from qubes_storage_zfs.store import messages
from qubes_storage_zfs.zfs import errors as zfs
from qubes_storage_zfs.zfs import probe

ROOT = Path(__file__).resolve().parents[2]
#: modules of the keyholder, which qubesd does not load
KEYHOLDER = ("zfs.keyholder", "zfs.answers", "zfs.secrecy")


def test_the_package_can_be_imported_without_pyzfs():
    script = (
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        f"sys.path.append({str(ROOT / 'tests/host')!r})\n"
        "sys.modules['libzfs_core'] = None\n"
        "import qubes_storage_zfs\n"
        "qubes_storage_zfs.ZfsZvolPool(name='p', container='tank/q')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_qubesd_loads_all_its_modules_at_start(tmp_path):
    """Otherwise an upgrade would mix two versions in one qubesd."""
    package = ROOT / "qubes_storage_zfs"
    script = (
        "import shutil, sys\n"
        f"sys.path[:0] = [{str(tmp_path)!r}]\n"
        f"sys.path.append({str(ROOT / 'tests/host')!r})\n"
        "import qubes_storage_zfs.driver.extension\n"
        f"shutil.rmtree({str(tmp_path / package.name)!r})\n"
        "from qubes_storage_zfs import ZfsEncryptedPool, ZfsZvolPool\n"
        "from qubes_storage_zfs.zfs import zcp\n"
        "print(*zcp.TEXTS, *zcp.LIBRARY)\n"
        "print(*(name for name in sys.modules))\n"
    )
    shutil.copytree(package, tmp_path / package.name)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
    )
    programs, modules = (
        set(line.split()) for line in done.stdout.split("\n")[:2]
    )
    assert programs == {path.stem for path in package.rglob("*.lua")}
    # qubesd loads no module of the tool or the keyholder, and the placeholder
    # only if the others cannot be imported
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        apart = name in (*KEYHOLDER, "driver.placeholder")
        is_loaded = f"{package.name}.{name}".rstrip(".") in modules
        if not name.startswith(("tools", "migrate")) and not apart:
            assert is_loaded, name
        assert not (name in KEYHOLDER and is_loaded), name


def test_qvm_pool_lists_the_options():
    from qubes_storage_zfs.driver import zvol

    parameters = {
        name: parameter
        for name, parameter in __import__("inspect")
        .signature(zvol.ZfsZvolPool.__init__)
        .parameters.items()
        if name not in ("self", "name", "kwargs")
    }
    assert list(parameters) == [
        "container",
        "block_devices",
        "revisions_to_keep",
        "ephemeral_volatile",
        "volblocksize",
        "compression",
        "dedup",
        "snap_on_start_forensics",
        "tag_qubes",
    ]
    assert all(
        parameter.default is not parameter.empty
        for parameter in parameters.values()
    )


def all_messages():
    return {
        name: value
        for module in (messages, prompts)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and " " in value
    }


def test_the_documentation_lists_every_message():
    text = " ".join(
        (ROOT / "doc/errors.md").read_text().replace("`", "").split()
    )
    for name, message in all_messages().items():
        assert " ".join(message.split()) in text, name


def test_the_documentation_names_a_test_for_every_message():
    text = (ROOT / "doc/errors.md").read_text()
    tests = " ".join(
        path.read_text() for path in (ROOT / "tests").rglob("test_*.py")
    )
    rows = [line for line in text.split("\n") if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name


@pytest.mark.parametrize(
    "exc, text",
    [
        (zfs.NoModule("tank", 2, "create"), "modprobe zfs"),
        (zfs.PoolAbsent("tank"), "sudo qvm-zfs attach"),
        (zfs.NoSpace("tank/a"), "no space left"),
        (zfs.Locked("tank/a"), "key of tank/a is not loaded"),
        (zfs.ReadOnlyZpool("tank/a", 30, "create"), "sudo zpool export tank'"),
        (zfs.Suspended("tank/a", 11, "create"), "sudo zpool clear tank'"),
        (zfs.SilentZpool("tank"), "tank does not answer"),
        (zfs.ReadOnlyDataset("tank/a"), "zfs set readonly=off tank/a'"),
        (zfs.NoPassphrase("tank/a", "raw"), "(keyformat=raw)"),
        (zfs.NotFound("tank/a@r1"), "does not exist"),
        (zfs.Exists("tank/a"), "already exists"),
        (zfs.NoDevice("tank/a"), "did not appear"),
        (zfs.InUse("tank/a", holders=("process 7 (dd)",)), "process 7 (dd)"),
        (zfs.Busy("tank/a"), "busy for too long"),
        (zfs.from_errno(36, "tank/a", "create"), "too long"),
        (zfs.ZfsError("tank/a", 5, "create"), "refused 'create'"),
        (zfs.CommandFailed("zfs set", 1, "cannot set"), "cannot set"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_every_failure_has_its_message(exc, text):
    with pytest.raises(qubes.exc.StoragePoolException) as caught:
        with errors.prefixed("Cannot do it"):
            raise exc
    assert str(caught.value).startswith("Cannot do it: ")
    assert text in str(caught.value)


#: arguments of exceptions that take others than a dataset and an errno
MADE_FROM = {
    zfs.SilentZpool: ("tank",),
    zfs.NoPassphrase: ("tank/a", "raw"),
    zfs.WrongPassphrase: ("tank/a",),
    zfs.NoNewPassphrase: ("tank/a",),
    zfs.BadAnswer: ("tank/a",),
    zfs.NoAnswer: ("tank/a",),
    zfs.BadIterations: ("tank/a", "5"),
    zfs.Unprotected: ("tank/a", "mlockall: no"),
    zfs.Silent: ("tank/a", 120.0),
    zfs.InUse: ("tank/a", 16, "destroy", ("process 7 (dd)",)),
    zfs.CommandFailed: ("zfs set", 1, "cannot set"),
    probe.DeviceRefused: ("/dev/sdx", "is not empty"),
}


def kinds_of(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from kinds_of(below)


def test_the_data_of_every_exception_fill_its_template():
    for kind in kinds_of(zfs.ZfsError):
        exc = kind(*MADE_FROM.get(kind, ("tank/a", 5, "create")))
        reason = messages.reason(exc)
        assert "{" not in reason and reason.isprintable(), kind
        assert str(exc), kind


def test_a_failure_has_a_template_and_data():
    exc = messages.Refused("{a} of {b!r}", a=1, b="{x}")
    assert messages.reason(exc) == str(exc) == "1 of '{x}'"
    assert (exc.template, exc.data) == ("{a} of {b!r}", {"a": 1, "b": "{x}"})
    assert str(messages.Refused("no {data}")) == "no {data}"


def test_advice_to_force_is_not_shown():
    exc = zfs.CommandFailed("zpool import", 1, "no:\n\tuse '-f' to\n more")
    assert messages.reason(exc) == "zpool import: no: more"


def test_percent_signs_are_escaped_for_the_client():
    exc = errors.refusal("Cannot", "50% of /dev/disk/%s")
    assert str(exc) % () == "Cannot: 50% of /dev/disk/%s"


def test_invalid_options_do_not_raise_before_setup():
    pool = ZfsZvolPool(name="p", revisions_to_keep="x", volblocksize="y")
    assert pool.revisions_to_keep == 2
    assert pool.config["volblocksize"] == "y"


def test_a_missing_kernel_module_is_reported(monkeypatch):
    import asyncio

    if Path("/dev/zfs").exists():
        pytest.skip("the zfs module is loaded")
    monkeypatch.setitem(sys.modules, "libzfs_core", None)
    pool = ZfsZvolPool(name="p", container="tank/q")
    with pytest.raises(qubes.exc.StoragePoolException, match="modprobe zfs"):
        asyncio.run(pool.setup())
    assert pool.size is None and pool.list_volumes() == []


LICENCE = "SPDX-License-Identifier: BSD-2-Clause"


def test_each_source_file_names_its_licence():
    """It is in the first two lines, or in a file of its own beside the source.

    The name of a VM image is a hash of image.sh and guest-init, so these have
    a file of their own.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository, so the sources are not known")
    listed = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    sources = 0
    for name in filter(None, listed):
        path = ROOT / name
        if not path.is_file():
            continue
        start = path.read_bytes()[:200].decode(errors="replace")
        if path.suffix in (".py", ".sh", ".lua") or start.startswith("#!"):
            sources += 1
            apart = path.with_name(f"{path.name}.license")
            if apart.exists():
                start = f"# {apart.read_text()}"
            comment = "--" if path.suffix == ".lua" else "#"
            assert f"{comment} {LICENCE}" in start.splitlines()[:2], name
    assert sources > 200
