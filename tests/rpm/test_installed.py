# SPDX-License-Identifier: BSD-2-Clause
"""The installed files, and that they work where they are."""

import configparser
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from .world import (
    AS_ROOT,
    DROP_IN,
    NAME,
    POLICY,
    PROJECT,
    QUBES,
    QUBES_XML,
    SERVICE,
    SITE,
    UNIT,
    Root,
    base,
    binary_packages,
    build,
    dom0,
    query,
    run,
    stub,
)

DOC = f"/usr/share/doc/{NAME}"

#: path -> mode, group, flags in rpm (c: configuration, n: noreplace,
#: d: documentation, l: licence)
FILES = {
    "/usr/bin/qvm-zfs": ("100755", "root", ""),
    "/usr/lib/modules-load.d/qubes-storage-zfs.conf": ("100644", "root", ""),
    os.path.dirname(DROP_IN): ("040755", "root", ""),
    DROP_IN: ("100644", "root", ""),
    UNIT: ("100644", "root", ""),
    "/usr/share/bash-completion/completions/qvm-zfs": ("100644", "root", ""),
    POLICY: ("100664", "qubes", "cn"),
    f"/usr/share/licenses/{NAME}": ("040755", "root", ""),
    f"/usr/share/licenses/{NAME}/LICENSE": ("100644", "root", "l"),
    DOC: ("040755", "root", ""),
    f"{DOC}/doc": ("040755", "root", ""),
}
ASK_FILES = {
    SERVICE: ("100755", "root", ""),
    f"/usr/share/licenses/{NAME}-askpassword": ("040755", "root", ""),
    f"/usr/share/licenses/{NAME}-askpassword/LICENSE": ("100644", "root", "l"),
}
DIST_INFO = ("LICENSE", "METADATA", "WHEEL", "entry_points.txt")

REQUIRES = {
    "python3 >= 3.11",
    "python3-pyzfs < 2.5",
    "python3-pyzfs >= 2.3.3",
    "qubes-core-dom0 >= 4.3",
    "sed",
    "util-linux",
    "zfs < 2.5",
    "zfs >= 2.3.3",
}
#: dependencies that rpm adds itself, here and on Fedora
GENERATED = ("rpmlib(", "config(", "python(abi)", "/bin/sh", "/usr/bin/python3")


def _expected(tree: Path) -> dict[str, tuple[str, str, str]]:
    """Return all expected files: FILES, and those for each source file."""
    file, folder = ("100644", "root", ""), ("040755", "root", "")
    files = dict(FILES)
    package = tree / "qubes_storage_zfs"
    for path in [package, *package.rglob("*")]:
        name = f"{SITE}/{path.relative_to(tree)}"
        files[name] = folder if path.is_dir() else file
    version = (tree / "version").read_text().strip()
    info = f"{SITE}/qubes_storage_zfs-{version}.dist-info"
    files[info] = folder
    for name in (*DIST_INFO, "top_level.txt"):
        files[f"{info}/{name}"] = file
    files[f"{DOC}/doc/decisions"] = folder
    for path in [*tree.glob("*.md"), *tree.glob("doc/**/*.md")]:
        files[f"{DOC}/{path.relative_to(tree)}"] = ("100644", "root", "d")
    for path in tree.glob("doc/manpages/*.rst"):
        section = 1 if path.stem.startswith("qvm-") else 7
        name = f"/usr/share/man/man{section}/{path.stem}.{section}"
        files[name] = ("100644", "root", "d")
    return files


def _files(package: Path) -> dict[str, tuple[str, str, str]]:
    tags = ("NAMES", "MODES:octal", "USERNAME", "GROUPNAME", "FLAGS:fflags")
    line = "|".join(f"%{{FILE{tag}}}" for tag in tags)
    files = {}
    for row in query(package, "--qf", f"[{line}\n]"):
        name, mode, user, group, flags = row.split("|")
        assert user == "root", name
        # rpm decides whether to compress the manual and compile modules
        if "__pycache__" not in name:
            name = name.removesuffix(".gz")
            files[name] = (mode.zfill(6), group, flags)
    return files


def test_packages_have_the_expected_files(tree, packages) -> None:
    assert _files(packages[NAME]) == _expected(tree)
    assert _files(packages[f"{NAME}-askpassword"]) == ASK_FILES


def test_dependencies(packages) -> None:
    release = query(packages[NAME], "--qf", "%{VERSION}-%{RELEASE}")[0]
    both = {
        NAME: REQUIRES | {f"{NAME}-askpassword = {release}"},
        f"{NAME}-askpassword": {"python3 >= 3.11", "qubes-core-qrexec"},
    }
    for name, expected in both.items():
        requires = {
            line
            for line in query(packages[name], "--requires")
            if not line.startswith(GENERATED)
        }
        assert requires == expected


@pytest.mark.parametrize("name", [NAME, f"{NAME}-askpassword"])
def test_source_package_has_tarball_and_spec(name, packages) -> None:
    version = query(packages[NAME], "--qf", "%{VERSION}")[0]
    files = query(packages[f"{name}.src"], "--qf", "[%{FILENAMES}\n]")
    assert set(files) == {f"{NAME}-{version}.tar.gz", f"{name}.spec"}


def test_builds_are_reproducible(packages, tarball, tmp_path) -> None:
    """Compare the payloads, because headers contain the build folder."""
    again = build(tarball, tmp_path)
    ask = f"{NAME}-askpassword"
    assert set(again) == {NAME, ask, f"{NAME}.src", f"{ask}.src"}
    for name, package in packages.items():
        digest = ("--qf", "%{PAYLOADDIGEST}")
        assert query(again[name], *digest) == query(package, *digest), name


@pytest.mark.parametrize("version", ["2.3.3", "2.3.9", "2.4.0", "2.4.99"])
def test_tested_versions_of_zfs_are_accepted(version, packages, empty) -> None:
    stubs = dom0(zfs=version, python3_pyzfs=version)
    empty.rpm("-i", "--test", *stubs, *binary_packages(packages))


@pytest.mark.parametrize(
    "name, version",
    [
        ("zfs", None),
        ("zfs", "2.2.8"),
        ("zfs", "2.3.2"),
        ("zfs", "2.5.0"),
        ("zfs", "2.5.0~rc1"),
        ("zfs", "3.0"),
        ("python3-pyzfs", None),
        ("python3-pyzfs", "2.3.2"),
        ("python3-pyzfs", "2.5.0"),
        ("qubes-core-dom0", None),
        ("qubes-core-dom0", "4.2.40"),
    ],
)
def test_missing_or_untested_dependency_is_refused(
    name, version, packages, empty
) -> None:
    stubs = dom0(**{name.replace("-", "_"): version})
    done = empty.attempt("-i", "--test", *stubs, *binary_packages(packages))
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    assert lines[0] == "error: Failed dependencies:"
    assert all(line.split()[0] == name for line in lines[1:])


def test_prompt_of_another_version_is_refused(packages, newer, empty) -> None:
    ask = f"{NAME}-askpassword"
    for others in [], [newer[ask]]:
        done = empty.attempt("-i", "--test", *dom0(), packages[NAME], *others)
        assert done.returncode != 0
        assert f"{ask} = " in done.stdout


def test_installed_files_are_unchanged(installed) -> None:
    for name in NAME, f"{NAME}-askpassword":
        assert installed.rpm("-V", name) == ""
    policy = (installed / POLICY).stat()
    assert (policy.st_gid, policy.st_mode & 0o7777) == (QUBES, 0o664)


def _python(root: Root, script: str) -> subprocess.CompletedProcess:
    """Run a script with the installed modules and a stand-in for qubes.

    pyzfs and the sources cannot be imported.
    """
    path = f"{root / SITE}:{PROJECT / 'tests/host'}"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": path}
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    script = f"import sys; sys.modules['libzfs_core'] = None\n{script}"
    return run(sys.executable, "-P", "-c", script, cwd="/", env=environ)


def test_each_module_imports(installed) -> None:
    package = installed / SITE / "qubes_storage_zfs"
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names.append(".".join(item for item in parts if item != "__init__"))
    assert len(names) > 20
    done = _python(
        installed,
        f"import importlib\nfor name in {names!r}:\n"
        "    print(importlib.import_module(name).__file__)\n",
    )
    files = done.stdout.splitlines()
    assert len(files) == len(names)
    assert all(file.startswith(f"{package}/") for file in files)


def test_entry_points_load(installed) -> None:
    (package,) = distributions(path=[str(installed / SITE)])
    assert {(item.group, item.name) for item in package.entry_points} == {
        ("qubes.storage", "zfs_zvol"),
        ("qubes.storage", "zfs_encrypted"),
        ("qubes.ext", "qubes_storage_zfs"),
        ("console_scripts", "qvm-zfs"),
    }
    done = _python(
        installed,
        "from importlib.metadata import distribution\n"
        f"for one in distribution({NAME!r}).entry_points:\n"
        "    print(one.name, one.load().__name__)\n",
    )
    assert set(done.stdout.splitlines()) == {
        "zfs_zvol ZfsZvolPool",
        "zfs_encrypted ZfsEncryptedPool",
        "qubes_storage_zfs PoolExtension",
        "qvm-zfs main",
    }


def test_channel_programs_are_installed(tree, installed) -> None:
    sources = list((tree / "qubes_storage_zfs").rglob("*.lua"))
    assert sources
    for source in sources:
        place = installed / SITE / str(source.relative_to(tree))
        assert place.read_bytes() == source.read_bytes()


def test_the_command_starts(installed) -> None:
    script = installed / "usr/bin/qvm-zfs"
    text = script.read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert "pkg_resources" not in text
    done = _python(
        installed,
        "import runpy; sys.argv[1:] = ['--help']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n",
    )
    assert done.stdout.startswith("usage: qvm-zfs ")


def test_qubesd_waits_for_zpools_and_needs_none(installed) -> None:
    parser = configparser.ConfigParser()
    parser.optionxform = str
    parser.read(installed / DROP_IN)
    assert parser.sections() == ["Unit"]
    assert dict(parser["Unit"]) == {
        "Wants": "qubes-storage-zfs-import.service",
        "After": "qubes-storage-zfs-import.service",
    }


def test_zfs_is_loaded_at_boot(installed) -> None:
    file = installed / "usr/lib/modules-load.d/qubes-storage-zfs.conf"
    assert file.read_text() == "zfs\n"


def test_prompt_can_be_installed_alone(packages, empty) -> None:
    empty.rpm("-i", base())
    before = empty.files()
    empty.rpm("-i", packages[f"{NAME}-askpassword"])
    assert empty.files() - before == {
        name for name, (mode, _, _) in ASK_FILES.items() if mode[:3] == "100"
    }
    done = subprocess.run(
        [sys.executable, "-I", empty / SERVICE, "unlock"],
        input=b"not a request\n",
        capture_output=True,
    )
    assert done.returncode == 3, done.stderr
    assert empty.ran() == []


def test_the_prompt_needs_qrexec(packages, empty) -> None:
    plain = stub("base", "1", "/usr/bin/python3, python3 = 3.13.0")
    package = packages[f"{NAME}-askpassword"]
    done = empty.attempt("-i", "--test", plain, package)
    assert "qubes-core-qrexec" in done.stdout and done.returncode != 0


# completion

XML = """<?xml version='1.0' encoding='utf-8'?>
<qubes version="3.0">
  <pools>
    <pool driver="lvm_thin" name="vm-pool" volume_group="qubes_dom0"/>
    <pool driver="zfs" name="old" container="tank/old"/>
    <pool driver="zfs_zvol" name="tank" container="tank/zfs_encrypted"/>
    <pool zpool_name="tank" name="private" driver='zfs_encrypted'/>
    <pool driver="zfs_encrypted" name="p2.x-y_z" zpool_name="tank"/>
    <pool driver="zfs_encrypted" name="$(echo x)" zpool_name="tank"/>
  </pools>
</qubes>
"""


@pytest.fixture(scope="module")
def completes(packages, tmp_path_factory):
    """Return complete(LINE): what bash offers for the last word of a line."""
    root = Root(tmp_path_factory.mktemp("shell") / "root")
    root.rpm("-i", *dom0(), *binary_packages(packages))

    def complete(line: str, *options: str, xml: str = XML) -> set[str]:
        root.write(QUBES_XML, xml)
        run(*AS_ROOT, "chmod", "600", root / QUBES_XML)
        script = (
            ". /usr/share/bash-completion/completions/qvm-zfs || exit\n"
            "[[ $(complete -p qvm-zfs) == *'-F _qvm_zfs '* ]] || exit\n"
            f"IFS=' ' read -ra COMP_WORDS <<<'{line}'\n"
            f"[[ '{line}' != *' ' ]] || COMP_WORDS+=('')\n"
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
            "_qvm_zfs\n"
            'IFS="|"; echo "${COMPREPLY[*]}"\n'
        )
        return set(root.shell(script, *options).strip().split("|")) - {""}

    return complete


@pytest.mark.parametrize(
    "line, offered",
    [
        ("qvm-zfs ", "status unlock lock passwd attach detach adopt --help"),
        ("qvm-zfs u", "unlock"),
        ("qvm-zfs -", "--help"),
        ("qvm-zfs x", ""),
        ("qvm-zfs status ", "tank private p2.x-y_z"),
        ("qvm-zfs status private t", "tank"),
        ("qvm-zfs status --j", "--json"),
        ("qvm-zfs status --json p", "private p2.x-y_z"),
        ("qvm-zfs unlock ", "private p2.x-y_z"),
        ("qvm-zfs unlock --", "--help"),
        ("qvm-zfs lock --", "--all --help"),
        ("qvm-zfs lock pr", "private"),
        ("qvm-zfs passwd --", "--pbkdf2iters --help"),
        ("qvm-zfs passwd --pbkdf2iters ", ""),
        ("qvm-zfs passwd --pbkdf2iters 500000 pr", "private"),
        ("qvm-zfs attach ", "tank private p2.x-y_z"),
        ("qvm-zfs adopt --a", "--apply"),
        ("qvm-zfs nonsense ", "--help"),
    ],
)
def test_completion_offers_the_right_words(completes, line, offered) -> None:
    assert completes(line) == set(offered.split())


def test_completion_works_without_qubes_xml(completes) -> None:
    as_nobody = "--userspec=65534:65534"
    assert completes("qvm-zfs unlock ", as_nobody) == set()
    assert completes("qvm-zfs un", as_nobody) == {"unlock"}
    assert completes("qvm-zfs status ", xml="") == set()


def test_completion_has_each_subcommand_and_option(completes) -> None:
    from qubes_storage_zfs.tools import main

    (subcommands,) = (a for a in main.parser()._actions if a.dest == "command")
    assert completes("qvm-zfs ") == {*subcommands.choices, "--help"}
    for name, parser in subcommands.choices.items():
        options = {
            option
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        }
        assert completes(f"qvm-zfs {name} -") == options
