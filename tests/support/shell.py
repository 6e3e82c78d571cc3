"""Run commands."""

import subprocess


def attempt(*command):
    """Run a command to its end; return it completed, whatever its status."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        # the name of a dataset may be any bytes
        errors="surrogateescape",
    )


def sh(*command, check=True):
    """Run a command; return its output without the last newline.

    :raises RuntimeError: if *check* is set and the command fails
    """
    done = attempt(*command)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout.strip()
