"""How the story is told: what is run, what it printed, what was checked."""

import contextlib
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import Any

import qubes.exc

WIDTH = 78

#: "ok" and "FAILED" -> how many checks ended so
checks: Counter[str] = Counter()
#: qvm tool -> how often it was called, for tools that were counted
calls: Counter[str] = Counter()
#: qvm tool -> programs that were started meanwhile
forks: Counter[str] = Counter()
_tool: str | None = None

_STARTS_A_PROGRAM = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system"}
)


def _audit(event: str, _arguments: Any) -> None:
    if _tool is not None and event in _STARTS_A_PROGRAM:
        forks[_tool] += 1


sys.addaudithook(_audit)


@contextlib.contextmanager
def chapter(title: str) -> Iterator[None]:
    """Say its title first, and last how long it took."""
    print(f"\n=== {title}\n")
    begin = time.monotonic()
    yield
    print(f"\n    ({time.monotonic() - begin:.1f} seconds)")


def say(text: str) -> None:
    """A remark to the reader."""
    print("\n" + textwrap.fill(" ".join(text.split()), WIDTH))


def check(condition: object, what: str) -> None:
    """Note whether a claim is true."""
    verdict = "ok" if condition else "FAILED"
    checks[verdict] += 1
    print(f"  {verdict}: {what}")


def sh(command: str) -> str:
    """Run a command line as a person would in dom0, or a program in a qube."""
    print(f"$ {command}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"FAILED: it ended with status {done.returncode}")
    return done.stdout.strip()


async def qvm(line: str, call: Awaitable[Any] | None = None) -> Any:
    """Await what qubesd does when this line is entered in dom0."""
    global _tool
    print(f"# {line}")
    if call is None:
        return None
    tool = line.split()[0]
    calls[tool] += 1
    _tool = tool
    try:
        return await call
    finally:
        _tool = None


async def refused(line: str, call: Awaitable[Any]) -> str:
    """As qvm(), where it must not succeed; what the user is told."""
    try:
        await qvm(line, call)
    except qubes.exc.QubesException as exc:
        # qubesd's client formats what it is told
        told = str(exc) % ()
        print(textwrap.fill(told, WIDTH, break_on_hyphens=False))
        return told
    return ""


def table(rows: dict[str, str]) -> None:
    """Names and values, one a line."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
