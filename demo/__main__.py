"""The story of a qube on ZFS: what the driver promises, shown and checked.

Run by ``make demo`` in a virtual machine, as root, on disks that are empty.
"""

import platform
import sys
import time
from pathlib import Path

from . import stage
from .stage import chapter, check, say, sh

LAB = Path("/tmp/demo")
LAB.mkdir(exist_ok=True)
MIB = 1 << 20
LIST = "zfs list -o name,used,refer,origin -r -t all"
QUIET = "conv=notrunc,fsync status=none"
PRIVATE = "work:private"
dom0 = stage.Dom0(LAB)


def digest(path):
    """Half a checksum of a file or device, which is enough."""
    return sh(f"sha256sum {path} | cut -c -32")


def names(dataset):
    return sh(f"zfs list -H -o name -r -t all {dataset}").split("\n")


def write(target, text):
    """What a program in the qube does."""
    sh(f"echo '{text}' | dd of={dom0.path(target)} {QUIET}")


def pools():
    say("This machine has four more disks, all empty.")
    sh("lsblk -d -o NAME,SIZE,FSTYPE,LABEL /dev/vd[b-e]")
    say("A pool can be made of whole disks: the driver makes a zpool of them.")
    dom0("qvm-pool add -o block_devices=/dev/vdb mypool zfs_zvol")
    sh("zpool list -o name,size,alloc,health")
    check(names("mypool") == ["mypool", "mypool/vm"], "the zpool is there")
    flags = "volmode,org.qubes-os:part-of-qvm-pool"
    check(
        sh(f"zfs get -H -o value {flags} mypool/vm") == "dev\ntrue",
        "dom0 will not look for partitions or file systems in it",
    )
    say("Or it is a dataset in a zpool of your own, beside other things.")
    sh("zpool create -m none archive /dev/vdc")
    sh(f"zfs create -o mountpoint={LAB}/photos archive/photos")
    sh(f"dd if=/dev/urandom of={LAB}/photos/1.raw bs=1M count=4 status=none")
    dom0("qvm-pool add -o container=archive/qubes second zfs_zvol")
    check("archive/qubes/vm" in names("archive"), "the dataset is there")
    say("A disk with anything on it is refused. This one was swap space:")
    sh("mkswap -q -L old /dev/vdd")
    told = dom0("qvm-pool add -o block_devices=/dev/vdd third zfs_zvol")
    check("/dev/vdd carries swap space" in told, "it is refused")
    check("third" not in dom0.app.pools, "there is no such pool")
    label = sh("blkid -p -o value -s LABEL /dev/vdd")
    check(label == "old", "and what was on the disk still is")


def qubes():
    say("New qubes are to be in mypool from now on.")
    dom0("qubes-prefs default_pool mypool")
    dom0("qvm-create -C TemplateVM -l black debian")
    dom0("qvm-create -C AppVM -l red -t debian work")
    dom0("qvm-create -C StandaloneVM -l blue solo")
    say(
        "The template gets an image with an operating system; random data"
        " and a hole stand for it here."
    )
    image = LAB / "root.img"
    sh(f"dd if=/dev/urandom of={image} bs=1M count=24 status=none")
    sh(f"truncate -s 96M {image}")
    dom0(f"qvm-volume import debian:root {image}")
    dom0("qvm-volume info debian:root")
    root = dom0.volume("debian:root")
    check(root.size == 96 * MIB, "the volume is as large as the image")
    check(0 < root.usage < 25 * MIB, "its hole takes no space")
    check(digest(image) == digest(root.path), "and it holds the image")
    sh(f"{LIST} mypool")
    check(
        [name for name in names("mypool/vm/work") if "root" in name] == [],
        "the AppVM has no root of its own, for it uses the template's",
    )


def session():
    dom0("qvm-start work")
    say("The root of a running AppVM is a clone of its template's.")
    sh(f"{LIST} mypool/vm/work")
    same = digest(dom0.path("work:root")) == digest(dom0.path("debian:root"))
    check(same, "it reads the same")
    say("The user writes a letter; malware writes to the root.")
    write(PRIVATE, "letter, second draft")
    device = dom0.path(PRIVATE)
    sh(f"dd if=/dev/urandom of={device} bs=1M seek=1 count=16 {QUIET}")
    write("work:root", "malware")
    dom0("qvm-shutdown --wait work")
    say("At shutdown the private volume is committed and the rest dropped.")
    left = sh(f"{LIST} mypool/vm/work")
    check("root" not in left, "the root is gone, and the malware with it")
    check("volatile" not in left, "so is the volatile volume")
    text = sh(f"head -n 1 {dom0.path(PRIVATE)}")
    check(text == "letter, second draft", "the letter is kept")
    revisions = dom0(f"qvm-volume info {PRIVATE}")
    check(len(revisions) == 1, "one can go back to before it was written")
    return digest(dom0.path(PRIVATE))


def accident(good):
    dom0("qvm-start work")
    say("Something in the qube overwrites all of its data.")
    sh(f"dd if=/dev/urandom of={dom0.path(PRIVATE)} bs=1M count=64 {QUIET}")
    dom0("qvm-shutdown --wait work")
    ruined = digest(dom0.path(PRIVATE))
    check(ruined != good, "the data is ruined")
    newest = dom0(f"qvm-volume info {PRIVATE}")[-1]
    dom0(f"qvm-volume revert {PRIVATE} {newest}")
    check(digest(dom0.path(PRIVATE)) == good, "the good state is back")
    say("Nothing is lost by going back: that can be undone, too.")
    newest = dom0(f"qvm-volume info {PRIVATE}")[-1]
    dom0(f"qvm-volume revert {PRIVATE} {newest}")
    check(digest(dom0.path(PRIVATE)) == ruined, "the ruined state is back")
    newest = dom0(f"qvm-volume info {PRIVATE}")[-1]
    dom0(f"qvm-volume revert {PRIVATE} {newest}")
    check(digest(dom0.path(PRIVATE)) == good, "and the good one again")
    sh(f"{LIST} mypool/vm/work")


def clone(good):
    say("A clone shares the data of the qube until one of them changes it.")
    dom0("qvm-clone work work2")
    sh(f"{LIST} mypool/vm/work2")
    device = dom0.path("work2:private")
    get = f"zfs get -H -p -o value origin,used {device[len('/dev/zvol/') :]}"
    origin, used = sh(get).split("\n")
    check(origin.startswith("mypool/vm/work/private"), "ZFS calls it a clone")
    check(int(used) < MIB, "and none of the 17 MiB of data were copied")
    check(digest(device) == good, "it reads the same")
    dom0("qvm-start work2")
    write("work2:private", "letter, to somebody else")
    dom0("qvm-shutdown --wait work2")
    check(digest(device) != good, "the clone can be changed")
    check(digest(dom0.path(PRIVATE)) == good, "without changing the original")


def backup(good):
    dom0("qvm-start work")
    write(PRIVATE, "letter, third dr")
    say(
        "The letter is half written now. A backup takes the state from"
        " before the qube's start, which is a whole one."
    )
    file = LAB / "private.img"
    path = dom0.export(PRIVATE)
    sh(f"dd if={path} of={file} bs=1M conv=sparse status=none")
    dom0.export_end(PRIVATE, path)
    check(digest(dom0.path(PRIVATE)) != good, "the qube has the half letter")
    check(digest(file) == good, "the backup has the state before")
    check(
        path.removeprefix("/dev/zvol/") not in names("mypool"),
        "what it was read from is gone",
    )
    dom0("qvm-shutdown --wait work")
    say("It is restored to the other pool, which is on another disk.")
    dom0("qvm-create -C AppVM -l red -t debian -P second restored")
    dom0(f"qvm-volume import restored:private {file}")
    sh(f"{LIST} archive/qubes")
    restored = digest(dom0.path("restored:private"))
    check(restored == good, "what was restored is what was backed up")
    dom0("qvm-start restored")
    root = digest(dom0.path("restored:root"))
    check(root == digest(dom0.path("debian:root")), "and the qube starts")
    dom0("qvm-shutdown --wait restored")


def killed():
    dom0("qvm-start work")
    write(PRIVATE, "letter, fourth draft")
    left = dom0.export("solo:private").removeprefix("/dev/zvol/")
    device = dom0.path(PRIVATE)
    say(
        "Now qubesd dies, in the middle of a backup. The new one knows only"
        " what is in qubes.xml and on disk."
    )
    check(left in names("mypool"), "the backup's device is there")
    dom0.kill_qubesd()
    check(dom0.app.domains["work"].is_running(), "the qube runs on")
    check(dom0.path(PRIVATE) == device, "on the same device")
    write(PRIVATE, "letter, fifth draft")
    check(left not in names("mypool"), "what the backup left is removed")
    dom0("qvm-shutdown --wait work")
    text = sh(f"head -n 1 {dom0.path(PRIVATE)}")
    check(text == "letter, fifth draft", "what it wrote since is kept")
    check(not dom0.volume(PRIVATE).is_dirty(), "and committed")


def removal():
    say("A qube can be removed although another one is a clone of it.")
    before = digest(dom0.path("work2:private"))
    dom0("qvm-remove -f work")
    after = digest(dom0.path("work2:private"))
    check(before == after, "the clone is as it was")
    for name in "work2", "restored", "solo", "debian":
        dom0(f"qvm-remove -f {name}")
    sh(f"{LIST} mypool archive")
    check(names("mypool") == ["mypool", "mypool/vm"], "mypool is empty")
    check(
        names("archive/qubes") == ["archive/qubes", "archive/qubes/vm"],
        "so is the other pool",
    )
    say("Removing a pool makes Qubes forget it. The zpool stays.")
    photo = digest(LAB / "photos/1.raw")
    dom0("qubes-prefs default_pool varlibqubes")
    dom0("qvm-pool remove mypool")
    dom0("qvm-pool remove second")
    check(list(dom0.app.pools) == ["varlibqubes"], "Qubes has forgotten them")
    there = sh("zpool list -H -o name").split()
    check(there == ["archive", "mypool"], "both zpools are there")
    check(digest(LAB / "photos/1.raw") == photo, "and your other data, too")
    say("Only you can destroy them.")
    sh("zpool destroy mypool")
    sh("zpool destroy archive")
    check(sh("zpool list -H") == "", "nothing is left")


def total(begin):
    """The sum of it; the exit status."""
    tools = ["qvm-start", "qvm-shutdown", "qvm-volume revert", "qvm-clone"]
    tools.append("qvm-backup")
    say("Programs the driver started (each would slow down the qubes):")
    for tool in tools:
        runs, started = stage.runs[tool], stage.programs[tool]
        print(f"{tool:18} called {runs:2} times, programs started: {started}")
    check(not any(stage.programs[tool] for tool in tools), "none")
    ok, every = stage.checks["ok"], stage.checks.total()
    version = Path("/sys/module/zfs/version").read_text("ascii").strip()
    print(
        f"\n{'All is well' if ok == every else 'FAILED'}: {ok} of {every}"
        f" checks hold; OpenZFS {version}, Linux {platform.release()},"
        f" {time.monotonic() - begin:.0f} seconds"
    )
    return ok != every


def main():
    begin = time.monotonic()
    print(
        "A line with # is one in dom0 of Qubes OS, one with $ shows the disk."
    )
    with chapter("1. Two pools"):
        pools()
    with chapter("2. Three qubes"):
        qubes()
    with chapter("3. A session"):
        good = session()
    with chapter("4. An accident, and the way back"):
        accident(good)
    with chapter("5. A clone"):
        clone(good)
    with chapter("6. A backup while the qube runs, and its restore"):
        backup(good)
    with chapter("7. qubesd is killed while a qube runs"):
        killed()
    with chapter("8. Nothing is left"):
        removal()
    return total(begin)


if __name__ == "__main__":
    sys.exit(main())
