# SPDX-License-Identifier: BSD-2-Clause
"""Run qvm-zfs as a user does."""

import json
import os
import re
import subprocess
import sys

COMMAND = [sys.executable, "-m", "qubes_storage_zfs.tools.main"]
#: lines of progress, which appear on a slow machine
_PROGRESS = re.compile(r"^.* \.\.\.\n", re.MULTILINE)


def qvm_zfs(*arguments, given=b"", env=None):
    """Run qvm-zfs; return its status, its output and its errors.

    :param given: standard input
    :param env: variables to add to the environment
    """
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=given,
        capture_output=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    errors = done.stderr.decode()
    assert "Traceback" not in errors
    return done.returncode, done.stdout.decode(), _PROGRESS.sub("", errors)


def refused(*arguments, env=None):
    """Run qvm-zfs, which must fail; return the line that says why."""
    code, out, err = qvm_zfs(*arguments, env=env)
    assert (code, out) == (1, "") and err.count("\n") == 1
    return err


def status(lab):
    """Return what "qvm-zfs status" reports about a pool."""
    _, out, _ = qvm_zfs("status", "--json", lab.name)
    return json.loads(out)["pools"][0]
