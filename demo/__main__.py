# SPDX-License-Identifier: BSD-2-Clause
"""Show the life of some qubes on ZFS, and check each claim about it.

``make demo`` runs this in a virtual machine, as root, on empty disks.
"""

import platform
import sys
import time
from pathlib import Path

from tests.support.background import be_patient

from . import stage
from .stage import check, say, sh

LAB = Path("/tmp/demo")
LAB.mkdir(exist_ok=True)
MIB = 1 << 20
LIST = "zfs list -o name,used,refer,origin -r -t all"
PRIVATE = "work:private"
dom0 = stage.Dom0(LAB)


def path(target):
    """Return the device of <qube>:<volume> once it exists, or a file's path."""
    if ":" not in str(target):
        return target
    device, end = Path(dom0.volume(target).path), time.monotonic() + 60
    while not device.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return str(device)


def digest(target):
    """Return half of a SHA-256 checksum, which is enough."""
    return sh(f"sha256sum {path(target)} | cut -c -32")


def names(dataset):
    return sh(f"zfs list -H -o name -r -t all {dataset}").split("\n")


def write(target, source, options=""):
    """Write to a device, as a program in the qube does."""
    options += "conv=notrunc,fsync status=none"
    sh(f"{source} | dd of={path(target)} {options}")


def pools(_):
    """Two pools"""
    say("This machine has four more disks, all empty.")
    sh("lsblk -d -o NAME,SIZE,FSTYPE,LABEL /dev/vd[b-e]")
    say("A pool can use whole disks. The driver creates a zpool on them.")
    dom0("qvm-pool add -o block_devices=/dev/vdb mypool zfs_zvol")
    sh("zpool list -o name,size,alloc,health")
    check(names("mypool") == ["mypool", "mypool/vm"], "the zpool exists")
    flags = sh("zfs get -H -o value volmode mypool/vm")
    check(flags == "dev", "dom0 does not scan its volumes for partitions")
    say("A pool can also be a dataset in a zpool that you already use.")
    sh("zpool create -m none archive /dev/vdc")
    sh(f"zfs create -o mountpoint={LAB}/photos archive/photos")
    sh(f"head -c 4M /dev/urandom >{LAB}/photos/1.raw")
    dom0("qvm-pool add -o container=archive/qubes second zfs_zvol")
    check("archive/qubes/vm" in names("archive"), "the dataset exists")
    say("The driver refuses a disk that is not empty. This one was swap space.")
    sh("mkswap -q -L old /dev/vdd")
    message = dom0("qvm-pool add -o block_devices=/dev/vdd third zfs_zvol")
    check("/dev/vdd contains swap space" in message, "the disk is refused")
    check("third" not in dom0.app.pools, "no pool was added")
    label = sh("blkid -p -o value -s LABEL /dev/vdd")
    check(label == "old", "the content of the disk is unchanged")


def qubes(_):
    """Three qubes"""
    say("From now on, new qubes are created in mypool.")
    dom0("qubes-prefs default_pool mypool")
    dom0("qvm-create -C TemplateVM -l black debian")
    dom0("qvm-create -C AppVM -l red -t debian work")
    dom0("qvm-create -C StandaloneVM -l blue solo")
    say("The template gets a root image: here random data and a hole.")
    image = LAB / "root.img"
    sh(f"head -c 24M /dev/urandom >{image}")
    sh(f"truncate -s 96M {image}")
    dom0(f"qvm-volume import debian:root {image}")
    dom0("qvm-volume info debian:root")
    root = dom0.volume("debian:root")
    check(root.size == 96 * MIB, "the volume is as large as the image")
    check(0 < root.usage < 25 * MIB, "the hole takes no space")
    check(
        digest(image) == digest("debian:root"),
        "the volume has the content of the image",
    )
    listing = sh(f"{LIST} mypool")
    check("work/private" in listing, "the app qube has a private volume")
    check(
        "work/root" not in listing,
        "it has no root volume before its first start",
    )


def session(_):
    """A session"""
    dom0("qvm-start work")
    say("The root volume of a running app qube is a clone of its template's.")
    sh(f"{LIST} mypool/vm/work")
    check(
        digest("work:root") == digest("debian:root"), "the content is the same"
    )
    say("The user writes a letter and saves files. Malware changes the root.")
    write(PRIVATE, "echo letter, second draft")
    write(PRIVATE, "head -c 16M /dev/urandom", "bs=1M seek=1 iflag=fullblock ")
    write("work:root", "echo malware")
    write("work:volatile", "echo swapped out")
    dom0("qvm-shutdown --wait work")
    say("At shutdown the private volume is committed. The rest is discarded.")
    sh(f"{LIST} mypool/vm/work")
    same = digest("work:root") == digest("debian:root")
    check(same, "the root is the template's again; the malware is gone")
    start = f"head -c 1M {path('work:volatile')}"
    count = sh(f"{start} | tr -d '\\0' | wc -c")
    check(count == "0", "the volatile volume is empty")
    text = sh(f"head -n 1 {path(PRIVATE)}")
    check(text == "letter, second draft", "the letter is kept")
    revisions = dom0(f"qvm-volume info {PRIVATE}")
    check(len(revisions) == 1, "there is a revision from before the letter")
    return digest(PRIVATE)


def accident(good):
    """An accident, and the way back"""
    dom0("qvm-start work")
    say("Something in the qube overwrites all of its data.")
    write(PRIVATE, "head -c 64M /dev/urandom", "bs=1M iflag=fullblock ")
    dom0("qvm-shutdown --wait work")
    ruined = digest(PRIVATE)
    check(ruined != good, "the data is ruined")
    for state, text in (
        (good, "Revert to the state before that session."),
        (ruined, "The ruined state is a revision now: undo the revert."),
        (good, "Revert to the good state once more."),
    ):
        say(text)
        newest = dom0(f"qvm-volume info {PRIVATE}")[-1]
        dom0(f"qvm-volume revert {PRIVATE} {newest}")
        check(digest(PRIVATE) == state, "the volume has the chosen state")
    sh(f"{LIST} mypool/vm/work")


def clone(good):
    """A clone"""
    say("A clone shares its data with the original until one of them changes.")
    dom0("qvm-clone work work2")
    sh(f"{LIST} mypool/vm/work2")
    dataset = path("work2:private").removeprefix("/dev/zvol/")
    origin, used = sh(f"zfs get -Hp -o value origin,used {dataset}").split()
    check(
        origin.startswith("mypool/vm/work/private"), "ZFS lists it as a clone"
    )
    check(int(used) < MIB, "none of the 17 MiB of data was copied")
    check(digest("work2:private") == good, "the content is the same")
    dom0("qvm-start work2")
    write("work2:private", "echo another letter")
    dom0("qvm-shutdown --wait work2")
    check(digest("work2:private") != good, "the clone has changed")
    check(digest(PRIVATE) == good, "the original is unchanged")


def backup(good):
    """A backup of a running qube, and its restore"""
    dom0("qvm-start work")
    say("A letter is half written. A backup must not contain this state.")
    write(PRIVATE, "echo letter, third dr")
    file = LAB / "private.img"
    device = dom0.export(PRIVATE)
    sh(f"dd if={device} of={file} bs=1M conv=sparse status=none")
    dom0.export_end(PRIVATE, device)
    check(digest(PRIVATE) != good, "the qube has the half letter")
    check(digest(file) == good, "the backup has the state before this session")
    gone = device.removeprefix("/dev/zvol/") not in names("mypool/vm/work")
    check(gone, "the clone that the backup read is gone")
    dom0("qvm-shutdown --wait work")
    say("The backup is restored to the other pool, which is on another disk.")
    dom0("qvm-create -C AppVM -l red -t debian -P second restored")
    dom0(f"qvm-volume import restored:private {file}")
    sh(f"{LIST} archive/qubes")
    check(
        digest("restored:private") == good,
        "the restored content is that of the backup",
    )


def killed(_):
    """qubesd is killed while a qube runs"""
    dom0("qvm-start work")
    write(PRIVATE, "echo letter, fourth draft")
    device = path(PRIVATE)
    temporary = dom0.export("solo:private").removeprefix("/dev/zvol/")
    check(temporary in names("mypool/vm/solo"), "a backup of solo has started")
    say(
        "Now qubesd is killed. Here, everything it had in memory is dropped."
        " The new qubesd has only qubes.xml and the disks."
    )
    dom0.kill_qubesd()
    check(dom0.app.domains["work"].is_running(), "the qube still runs")
    check(path(PRIVATE) == device, "it uses the same device")
    write(PRIVATE, "echo letter, fifth draft")
    gone = temporary not in names("mypool/vm/solo")
    check(gone, "the clone of the interrupted backup is gone")
    dom0("qvm-shutdown --wait work")
    text = sh(f"head -n 1 {path(PRIVATE)}")
    check(text == "letter, fifth draft", "the newest letter is kept")
    check(not dom0.volume(PRIVATE).is_dirty(), "it is committed")


def key(_):
    """A pool with a key of its own"""
    say(
        "An encrypted pool can be read only while its key is loaded. qubesd"
        " starts a process for each passphrase, and others to encrypt the"
        " volatile volume. The count at the end leaves these out."
    )
    programs = stage.programs.copy()
    person = stage.person()
    dom0("qvm-pool add -o zpool_name=archive private zfs_encrypted")
    check(person.asked == ["new", "new-again"], "a passphrase was chosen")
    dom0("qvm-create -C AppVM -l black -t debian -P private diary")
    dom0("qvm-start diary")
    write("diary:private", "echo dear diary")
    dom0("qvm-shutdown --wait diary")
    dom0.qvm_zfs("lock private")
    status = dom0.qvm_zfs("status").stdout
    check("locked" in status, "the key is unloaded")
    node = Path(f"/dev/zvol/{dom0.volume('diary:private').dataset}")
    sh("udevadm settle")
    check(not node.exists(), "there is no device to read")
    asked = len(person.asked)
    dom0("qvm-start diary")
    check(
        person.asked[asked:] == ["unlock"],
        "the start of a qube asks for the passphrase once",
    )
    text = sh(f"head -n 1 {path('diary:private')}")
    check(text == "dear diary", "the content is readable again")
    dom0("qvm-shutdown --wait diary")
    dom0("qvm-remove -f diary")
    dom0("qvm-pool remove private")
    stage.programs.clear()
    stage.programs.update(programs)
    check(
        names("archive/encryption") != [],
        "the dataset of the removed pool is kept",
    )


def removal(_):
    """Removal"""
    say("A qube can be removed even if another one is a clone of it.")
    before = digest("work2:private")
    dom0("qvm-remove -f work")
    check(digest("work2:private") == before, "the clone is unchanged")
    for name in "work2", "restored", "solo", "debian":
        dom0(f"qvm-remove -f {name}")
    sh(f"{LIST} mypool archive")
    check(names("mypool") == ["mypool", "mypool/vm"], "mypool is empty")
    remaining = names("archive/qubes")
    check(
        remaining == ["archive/qubes", "archive/qubes/vm"],
        "second is empty too",
    )
    say("Removing a pool takes it out of qubes.xml. Its zpool is kept.")
    photo = digest(LAB / "photos/1.raw")
    dom0("qubes-prefs default_pool varlibqubes")
    dom0("qvm-pool remove mypool")
    dom0("qvm-pool remove second")
    check(list(dom0.app.pools) == ["varlibqubes"], "both pools are removed")
    zpools = sh("zpool list -H -o name").split()
    check(zpools == ["archive", "mypool"], "both zpools still exist")
    check(digest(LAB / "photos/1.raw") == photo, "your other data is unchanged")
    say("Only you can destroy the zpools.")
    sh("zpool destroy mypool")
    sh("zpool destroy archive")
    check(sh("zpool list -H") == "", "no zpool is left")


def main():
    """Show all parts; return whether a check failed."""
    be_patient()
    start = last = time.monotonic()
    good = None
    say(
        "Lines with $ are commands that run here. Lines with # are what a"
        " user types in dom0. The driver, ZFS and the disks are real. qubesd"
        " is the stand-in of the tests. A running qube is only a set of open"
        " devices."
    )
    parts = (
        *(pools, qubes, session, accident, clone, backup, killed, key),
        removal,
    )
    for number, part in enumerate(parts, 1):
        print(f"\n=== {number}. {part.__doc__}")
        good = part(good) or good
        now = time.monotonic()
        print(f"\n    ({now - last:.1f} seconds)")
        last = now
    print("\n=== Programs that the driver started")
    started, runs = stage.programs, stage.runs
    check(
        started["qvm-pool"], f"{started['qvm-pool']} to create and check pools"
    )
    for tool in "start", "shutdown", "volume revert", "clone", "backup":
        tool = f"qvm-{tool}"
        check(runs[tool] and not started[tool], f"none by {tool}")
    passed, total = stage.checks["ok"], stage.checks.total()
    version = Path("/sys/module/zfs/version").read_text("ascii").strip()
    print(
        f"\n{'OK' if passed == total else 'FAILED'}: {passed} of {total} checks"
        f" passed; OpenZFS {version}, Linux {platform.release()},"
        f" {last - start:.0f} seconds"
    )
    return passed != total


if __name__ == "__main__":
    sys.exit(main())
