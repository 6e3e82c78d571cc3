# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs as a person runs it."""

import json
import os
import re
import subprocess
import sys

COMMAND = [sys.executable, "-m", "qubes_storage_zfs.tools.main"]
#: printed where the machine is slow
_PROGRESS = re.compile(r"^.* \.\.\.\n", re.MULTILINE)


def qvm_zfs(*arguments, given=b"", env=None):
    """Run qvm-zfs; return its status, its output and its errors.

    :param given: standard input
    :param env: what is added to the environment
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
    """Return what "qvm-zfs status" says of a pool."""
    _, out, _ = qvm_zfs("status", "--json", lab.name)
    return json.loads(out)["pools"][0]
