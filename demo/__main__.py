"""The story of a qube on ZFS: what the driver promises, shown and checked.

Run by ``make demo`` in a virtual machine, as root, on disks that are empty.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "host"))

import qubes.config

MIB = 1 << 20
#: bytes; qubes begin with 2 GiB, which would only take longer to compare
PRIVATE = 64 * MIB
qubes.config.defaults["private_img_size"] = PRIVATE

import hostapi
import qubes.storage

from .stage import (
    chapter,
    qvm,
    sh,
    table,
)

LAB = Path("/tmp/demo")
COLUMNS = "-o name,used,refer,origin"
QUIET = "conv=notrunc,fsync status=none"


def digest(path):
    """The first half of the checksum of a file or device, it is enough."""
    return sh(f"sha256sum {path} | cut -c-32")


def names(zpool):
    """All datasets and snapshots of a zpool."""
    return sh(f"zfs list -H -r -t all -o name {zpool}").split("\n")


def write(path, text):
    """What a program in the qube does."""
    sh(f"echo '{text}' | dd of={path} {QUIET}")


def info(vm, name):
    """qvm-volume info; gives the revisions."""
    print(f"# qvm-volume info {vm.name}:{name}")
    known = hostapi.volume_info(vm, name)
    table({key: known[key] for key in ("pool", "vid", "size", "usage")})
    revisions = hostapi.list_snapshots(vm, name)
    print("Available revisions (for revert):", " ".join(revisions) or "none")
    return revisions


class Story:
    """What is carried from one chapter to the next.

    :ivar app: qubesd
    :ivar good: checksum of the private volume of "work" that is to be kept
    """

    def __init__(self):
        self.app = hostapi.new_app(LAB / "qubes.xml", hold_devices=True)
        self.good = ""

    def private(self, name="work"):
        return self.app.domains[name].volumes["private"]

    async def start(self, name):
        await qvm(f"qvm-start {name}", self.app.domains[name].start())

    async def shutdown(self, name):
        call = self.app.domains[name].shutdown()
        await qvm(f"qvm-shutdown --wait {name}", call)

    async def revert(self, revision):
        await qvm(
            f"qvm-volume-revert work:private {revision}".replace("-r", " r", 1),
            hostapi.revert(self.app.domains["work"], "private", revision),
        )

    async def tell(self):
        for title, tell in (
            ("1. Two pools", self.pools),
            ("2. Three qubes", self.qubes),
            ("3. A session", self.session),
            ("4. An accident, and the way back", self.accident),
            ("5. A clone", self.clone),
            ("6. A backup while the qube runs, and its restore", self.backup),
            ("7. qubesd is killed while a qube runs", self.killed),
            ("8. Nothing is left", self.removal),
        ):
            with chapter(title):
                await tell()
