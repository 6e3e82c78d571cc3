"""What can be said of qvm-zfs without ZFS."""

import argparse
import re
import subprocess
import sys
import types
from pathlib import Path

from qubes_storage_zfs.tools import main, status

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_manual_has_every_verb_and_option():
    manual = (ROOT / "doc/manpages/qvm-zfs.rst").read_text()
    (verbs,) = (
        action
        for action in main.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for verb, parser in verbs.choices.items():
        assert f"\n{verb}\n   " in manual
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"``{option}``" in manual, option
    named = re.findall(r"^(\w+)\n   ", manual, re.M)
    assert sorted(named) == sorted(verbs.choices)


def test_tools_do_not_import_qubesd_modules():
    code = (
        "import sys; sys.modules['qubes'] = None\n"
        "import qubes_storage_zfs.tools.main, qubes_storage_zfs.zfs.keyholder"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_volumes_outside_are_found():
    def volume(name, pool, **more):
        given = {"rw": True, "ephemeral": False, **more}
        return types.SimpleNamespace(name=name, pool=pool, **given)

    def qube(name, *volumes, klass="AppVM"):
        found = {each.name: each for each in volumes}
        return types.SimpleNamespace(name=name, klass=klass, volumes=found)

    app = types.SimpleNamespace(
        pools={
            "safe": types.SimpleNamespace(name="safe", driver="zfs_encrypted"),
            "pl": types.SimpleNamespace(name="pl", driver="zfs_zvol"),
        },
        domains=[
            types.SimpleNamespace(name="dom0", klass="AdminVM"),
            qube("all-in", volume("private", "safe"), volume("root", "safe")),
            qube("all-out", volume("private", "pl"), volume("root", "pl")),
            qube(
                "both",
                volume("private", "safe"),
                volume("root", "pl"),
                volume("volatile", "pl", ephemeral=True),
                volume("kernel", "pl", rw=False),
            ),
        ],
    )
    assert list(status._outside(app)) == [
        {"qube": "both", "volume": "root", "pool": "pl"}
    ]
