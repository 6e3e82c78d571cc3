#!/bin/bash
# Build the guest image: Debian with the real zfs module in it.
#
#   image.sh SUITE OUTDIR      SUITE: 2.3 (Debian 13) or 2.4 (its backports)
#
# Leaves OUTDIR/{root.img,vmlinuz,initrd,info}.  Whoever calls this gives a
# folder that is not yet the cached one and renames it after success: only a
# whole image ever bears the cached name.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8

suite=$1
out=$2
release=trixie

# what the tests use; the last lines are what a core-admin checkout imports
packages=(
    linux-image-amd64 linux-headers-amd64 initramfs-tools zstd
    zfs-dkms zfsutils-linux python3-pyzfs
    python3-pytest python3-hypothesis python3-lxml
    udev kmod procps passwd sudo strace fdisk iproute2
    lvm2 thin-provisioning-tools cryptsetup-bin mdadm
    xfsprogs btrfs-progs e2fsprogs
    python3-yaml python3-jinja2 python3-docutils python3-inotify
    python3-setuptools python3-tqdm scrypt openssh-server
)

# The mirror is the one the host already trusts; a host that is no Debian
# names one.
mirror() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
        return
    fi
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 2>/dev/null |
        awk -v r="$codename" '$2 == r && $3 == "main" {
            sub(/\/$/, "", $1); print $1; exit }'
}

uri=$(mirror)
if [ -z "$uri" ]; then
    echo "image.sh: found no Debian mirror in this host's apt sources;" \
        "set DEBIAN_MIRROR=<its URI>" >&2
    exit 1
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
components="main contrib"

sources=("deb [signed-by=$keyring] $uri $release $components")
case $suite in
2.3) ;;
2.4)
    sources+=("deb [signed-by=$keyring] $uri $release-backports $components")
    ;;
*)
    echo "image.sh: ZFS_SUITE must be 2.3 or 2.4, not '$suite'" >&2
    exit 1
    ;;
esac

mkdir -p "$out"
root=$out/rootfs
trap 'rm -rf "$root"' EXIT

hooks=()
if [ "$suite" = 2.4 ]; then
    pin='Package: zfs* libzfs* libzpool* libnvpair* libuutil* python3-pyzfs
Pin: release n=trixie-backports
Pin-Priority: 990'
    hooks+=(--setup-hook='mkdir -p "$1/etc/apt/preferences.d"')
    hooks+=(--setup-hook="echo '$pin' > \"\$1/etc/apt/preferences.d/zfs\"")
fi
# A small initrd: unpacking the full one costs seconds under emulation.
hooks+=(--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"')
hooks+=(--essential-hook='printf "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n" > "$1/etc/initramfs-tools/conf.d/small"')
hooks+=(--essential-hook='printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" > "$1/etc/initramfs-tools/modules"')

printf '%s\n' "${sources[@]}" | mmdebstrap \
    --mode=root --variant=apt --skip=output/dev \
    --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(
        IFS=,
        echo "${packages[*]}"
    )" \
    "${hooks[@]}" \
    "$release" "$root" -

kernel=$(basename "$(ls -d "$root"/lib/modules/*/updates/dkms | head -n 1 |
    xargs -r dirname | xargs -r dirname)")
if ! ls "$root/lib/modules/$kernel/updates/dkms"/zfs.ko* >/dev/null 2>&1; then
    echo "image.sh: DKMS built no zfs module" >&2
    exit 1
fi
# The tests are put where the image looks for them at boot.
install -m 755 "$(dirname "$0")/guest-init" "$root/sbin/guest-init"
chroot "$root" groupadd -f -g 98 qubes
chroot "$root" useradd -m -u 1000 -G qubes user
chroot "$root" update-initramfs -u -k "$kernel"
# only the build needs these
chroot "$root" dpkg --force-depends --purge linux-headers-amd64 \
    >/dev/null 2>&1 || true
rm -rf "$root"/usr/src/linux-headers-* "$root"/var/lib/dkms/zfs/*/build \
    "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$root/boot/initrd.img-$kernel" "$out/initrd"
zfs=$(chroot "$root" dpkg-query -W -f '${Version}' zfs-dkms)
printf 'suite=%s\nkernel=%s\nzfs=%s\n' "$suite" "$kernel" "$zfs" \
    >"$out/info"

size=$(du -sm "$root" | cut -f1)
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$out/root.img" \
    "$((size + size / 4 + 300))M"
