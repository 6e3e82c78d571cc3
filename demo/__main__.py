# SPDX-License-Identifier: BSD-2-Clause
"""The story of a qube on ZFS: what the driver promises, shown and checked.

Run by ``make demo`` in a virtual machine, as root, on disks that are empty.
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
HOME = "work:private"
dom0 = stage.Dom0(LAB)


def path(target):
    """The device of <qube>:<volume>, when udev made it; a file is its own."""
    if ":" not in str(target):
        return target
    device, end = Path(dom0.volume(target).path), time.monotonic() + 60
    while not device.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return str(device)


def digest(target):
    """Half a checksum, which is enough."""
    return sh(f"sha256sum {path(target)} | cut -c -32")


def names(dataset):
    return sh(f"zfs list -H -o name -r -t all {dataset}").split("\n")


def write(target, source, options=""):
    """What a program in the qube does."""
    options += "conv=notrunc,fsync status=none"
    sh(f"{source} | dd of={path(target)} {options}")


def pools(_):
    """Two pools"""
    say("This machine has four more disks, all empty.")
    sh("lsblk -d -o NAME,SIZE,FSTYPE,LABEL /dev/vd[b-e]")
    say("A pool can be made of whole disks: the driver makes a zpool of them.")
    dom0("qvm-pool add -o block_devices=/dev/vdb mypool zfs_zvol")
    sh("zpool list -o name,size,alloc,health")
    check(names("mypool") == ["mypool", "mypool/vm"], "the zpool is there")
    flags = sh("zfs get -H -o value volmode mypool/vm")
    check(flags == "dev", "dom0 will not look for partitions in it")
    say("Or it is a dataset in a zpool of your own, beside other things.")
    sh("zpool create -m none archive /dev/vdc")
    sh(f"zfs create -o mountpoint={LAB}/photos archive/photos")
    sh(f"head -c 4M /dev/urandom >{LAB}/photos/1.raw")
    dom0("qvm-pool add -o container=archive/qubes second zfs_zvol")
    check("archive/qubes/vm" in names("archive"), "the dataset is there")
    say("A disk with anything on it is refused. This one was swap space:")
    sh("mkswap -q -L old /dev/vdd")
    told = dom0("qvm-pool add -o block_devices=/dev/vdd third zfs_zvol")
    check("/dev/vdd carries swap space" in told, "it is refused")
    check("third" not in dom0.app.pools, "there is no such pool")
    label = sh("blkid -p -o value -s LABEL /dev/vdd")
    check(label == "old", "and what was on the disk still is")


def qubes(_):
    """Three qubes"""
    say("New qubes are to be in mypool from now on.")
    dom0("qubes-prefs default_pool mypool")
    dom0("qvm-create -C TemplateVM -l black debian")
    dom0("qvm-create -C AppVM -l red -t debian work")
    dom0("qvm-create -C StandaloneVM -l blue solo")
    say("The template gets a root image: here random data, and a hole.")
    image = LAB / "root.img"
    sh(f"head -c 24M /dev/urandom >{image}")
    sh(f"truncate -s 96M {image}")
    dom0(f"qvm-volume import debian:root {image}")
    dom0("qvm-volume info debian:root")
    root = dom0.volume("debian:root")
    check(root.size == 96 * MIB, "the volume is as large as the image")
    check(0 < root.usage < 25 * MIB, "its hole takes no space")
    check(digest(image) == digest("debian:root"), "and it holds the image")
    listing = sh(f"{LIST} mypool")
    check("work/private" in listing, "the AppVM has a private volume")
    check("work/root" not in listing, "it has no root before it starts")


def session(_):
    """A session"""
    dom0("qvm-start work")
    say("The root of a running AppVM is a clone of its template's.")
    sh(f"{LIST} mypool/vm/work")
    check(digest("work:root") == digest("debian:root"), "it reads the same")
    say("The user writes a letter and saves files; malware changes the root.")
    write(HOME, "echo letter, second draft")
    write(HOME, "head -c 16M /dev/urandom", "bs=1M seek=1 iflag=fullblock ")
    write("work:root", "echo malware")
    write("work:volatile", "echo swapped out")
    dom0("qvm-shutdown --wait work")
    say("At shutdown the private volume is committed and the rest dropped.")
    sh(f"{LIST} mypool/vm/work")
    same = digest("work:root") == digest("debian:root")
    check(same, "the root is the template's again, and the malware gone")
    start = f"head -c 1M {path('work:volatile')}"
    count = sh(f"{start} | tr -d '\\0' | wc -c")
    check(count == "0", "the volatile volume is empty")
    text = sh(f"head -n 1 {path(HOME)}")
    check(text == "letter, second draft", "the letter is kept")
    revisions = dom0(f"qvm-volume info {HOME}")
    check(len(revisions) == 1, "one can go back to before it was written")
    return digest(HOME)


def accident(good):
    """An accident, and the way back"""
    dom0("qvm-start work")
    say("Something in the qube overwrites all of its data.")
    write(HOME, "head -c 64M /dev/urandom", "bs=1M iflag=fullblock ")
    dom0("qvm-shutdown --wait work")
    ruined = digest(HOME)
    check(ruined != good, "the data is ruined")
    for state, what in (
        (good, "Go back to the state before that session."),
        (ruined, "What was left behind is kept: undo the going back."),
        (good, "And once more to the good state."),
    ):
        say(what)
        newest = dom0(f"qvm-volume info {HOME}")[-1]
        dom0(f"qvm-volume revert {HOME} {newest}")
        check(digest(HOME) == state, "that is the state wanted")
    sh(f"{LIST} mypool/vm/work")


def clone(good):
    """A clone"""
    say("A clone shares the data of the qube until one of them changes it.")
    dom0("qvm-clone work work2")
    sh(f"{LIST} mypool/vm/work2")
    dataset = path("work2:private").removeprefix("/dev/zvol/")
    origin, used = sh(f"zfs get -Hp -o value origin,used {dataset}").split()
    check(origin.startswith("mypool/vm/work/private"), "ZFS calls it a clone")
    check(int(used) < MIB, "none of the 17 MiB of data were copied")
    check(digest("work2:private") == good, "it reads the same")
    dom0("qvm-start work2")
    write("work2:private", "echo letter to somebody else")
    dom0("qvm-shutdown --wait work2")
    check(digest("work2:private") != good, "the clone can be changed")
    check(digest(HOME) == good, "and the original stays as it was")


def backup(good):
    """A backup while the qube runs, and its restore"""
    dom0("qvm-start work")
    say("A letter is half written now; a backup must not contain that.")
    write(HOME, "echo letter, third dr")
    file = LAB / "private.img"
    device = dom0.export(HOME)
    sh(f"dd if={device} of={file} bs=1M conv=sparse status=none")
    dom0.export_end(HOME, device)
    check(digest(HOME) != good, "the qube has the half letter")
    check(digest(file) == good, "the backup has the state before its start")
    gone = device.removeprefix("/dev/zvol/") not in names("mypool/vm/work")
    check(gone, "what the backup was read from is gone")
    dom0("qvm-shutdown --wait work")
    say("It is restored to the other pool, which is on another disk.")
    dom0("qvm-create -C AppVM -l red -t debian -P second restored")
    dom0(f"qvm-volume import restored:private {file}")
    sh(f"{LIST} archive/qubes")
    check(digest("restored:private") == good, "it is what was backed up")


def killed(_):
    """qubesd is killed while a qube runs"""
    dom0("qvm-start work")
    write(HOME, "echo letter, fourth draft")
    device = path(HOME)
    left = dom0.export("solo:private").removeprefix("/dev/zvol/")
    check(left in names("mypool/vm/solo"), "a backup of solo has begun")
    say(
        "Now qubesd dies: here, all it had in memory is dropped. The new one"
        " knows only qubes.xml and the disks."
    )
    dom0.kill_qubesd()
    check(dom0.app.domains["work"].is_running(), "the qube runs on")
    check(path(HOME) == device, "on the same device")
    write(HOME, "echo letter, fifth draft")
    gone = left not in names("mypool/vm/solo")
    check(gone, "what the broken-off backup left was removed")
    dom0("qvm-shutdown --wait work")
    text = sh(f"head -n 1 {path(HOME)}")
    check(text == "letter, fifth draft", "what the qube wrote since is kept")
    check(not dom0.volume(HOME).is_dirty(), "and committed")


def key(_):
    """A pool with a key of its own"""
    say(
        "What is in it can be read only while its key is loaded. A process of"
        " its own deals with each passphrase, and qubesd starts others to"
        " encrypt the volatile volume; they are not counted below."
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
    check("locked" in status, "the key is forgotten")
    node = Path(f"/dev/zvol/{dom0.volume('diary:private').dataset}")
    sh("udevadm settle")
    check(not node.exists(), "there is not even a device to read")
    asked = len(person.asked)
    dom0("qvm-start diary")
    check(person.asked[asked:] == ["unlock"], "its start asks for it, once")
    text = sh(f"head -n 1 {path('diary:private')}")
    check(text == "dear diary", "and all is there again")
    dom0("qvm-shutdown --wait diary")
    dom0("qvm-remove -f diary")
    dom0("qvm-pool remove private")
    stage.programs.clear()
    stage.programs.update(programs)
    check(names("archive/encryption") != [], "a removed pool's dataset stays")


def removal(_):
    """Nothing is left"""
    say("A qube can be removed although another one is a clone of it.")
    before = digest("work2:private")
    dom0("qvm-remove -f work")
    check(digest("work2:private") == before, "the clone is as it was")
    for name in "work2", "restored", "solo", "debian":
        dom0(f"qvm-remove -f {name}")
    sh(f"{LIST} mypool archive")
    check(names("mypool") == ["mypool", "mypool/vm"], "mypool is empty")
    left = names("archive/qubes")
    check(left == ["archive/qubes", "archive/qubes/vm"], "second is, too")
    say("Removing a pool makes Qubes forget it; the zpools stay.")
    photo = digest(LAB / "photos/1.raw")
    dom0("qubes-prefs default_pool varlibqubes")
    dom0("qvm-pool remove mypool")
    dom0("qvm-pool remove second")
    check(list(dom0.app.pools) == ["varlibqubes"], "Qubes has forgotten them")
    zpools = sh("zpool list -H -o name").split()
    check(zpools == ["archive", "mypool"], "both zpools are there")
    check(digest(LAB / "photos/1.raw") == photo, "and your other data")
    say("Only you can destroy them.")
    sh("zpool destroy mypool")
    sh("zpool destroy archive")
    check(sh("zpool list -H") == "", "nothing is left")


def main():
    """Tell it all; the exit status says whether every check held."""
    be_patient()
    begin = last = time.monotonic()
    good = None
    say(
        "Lines with $ are commands run here. Lines with # are what a user"
        " enters in dom0; the driver, ZFS and the disks are real, qubesd is"
        " the stand-in of the tests, and a qube that runs is its open devices."
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
    print("\n=== Programs started meanwhile")
    started, runs = stage.programs, stage.runs
    check(started["qvm-pool"], f"{started['qvm-pool']} to make and check pools")
    for tool in "start", "shutdown", "volume revert", "clone", "backup":
        tool = f"qvm-{tool}"
        check(runs[tool] and not started[tool], f"none by {tool}")
    ok, every = stage.checks["ok"], stage.checks.total()
    version = Path("/sys/module/zfs/version").read_text("ascii").strip()
    print(
        f"\n{'All is well' if ok == every else 'FAILED'}: {ok} of {every}"
        f" checks hold; OpenZFS {version}, Linux {platform.release()},"
        f" {last - begin:.0f} seconds"
    )
    return ok != every


if __name__ == "__main__":
    sys.exit(main())
