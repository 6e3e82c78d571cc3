#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Make the guest look like dom0.  Install core-admin, core-admin-client and
# core-qrexec from the mounted checkouts, this project, and stand-ins for what is
# missing (stubs/, bin/).  Copy all to the guest's disk, because 9p is slow.
# Run it once, as root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
site=/usr/lib/python3/dist-packages

# package FOLDER NAME: install the Python package NAME from FOLDER
package() {
    tar -c -C "$1" --exclude=tests --exclude=__pycache__ "$2" |
        tar -x -C "$site" --no-same-owner
}

# entry_points FOLDER: install the entry points that its metadata lists
entry_points() (
    cd "$1"
    python3 setup.py -q egg_info --egg-base "$site" 2>/dev/null
)

package /core-admin qubes
package /core-admin-client qubesadmin
package /core-qrexec qrexec
package "$project" qubes_storage_zfs
mkdir -p /root/core-admin
tar -c -C /core-admin --exclude=tests qubes setup.py version |
    tar -x -C /root/core-admin --no-same-owner
entry_points /root/core-admin
entry_points "$project"
# the tools read their own version
mkdir -p "$site/qubesadmin.dist-info"
cat >"$site/qubesadmin.dist-info/METADATA" <<END
Metadata-Version: 2.1
Name: qubesadmin
Version: $(cat /core-admin-client/version)
Summary: -
Author-email: -
License: -
END
cp "$here"/stubs/*.py "$site"

mkdir -p /etc/qubes-rpc /usr/share/qubes/templates /usr/lib/qubes
tar -c -C /core-admin/qubes-rpc . | tar -x -C /etc/qubes-rpc --no-same-owner
ln -sf admin.vm.volume.Import /etc/qubes-rpc/admin.vm.volume.ImportWithSize
cp -r /core-admin/templates/. /usr/share/qubes/templates
cp /core-qrexec/lib/qubes-rpc-multiplexer /usr/lib/qubes/
install -m 755 "$project"/dom0/qubes-rpc/* /etc/qubes-rpc

install -m 755 "$here"/bin/{column,logger,virsh,zenity,qubesd} \
    /usr/local/bin
install -m 755 "$here/bin/qrexec-daemon" /usr/sbin
install -m 755 "$here/bin/nothing" /usr/sbin/qubesdb-daemon
install -m 755 "$here/bin/nothing" /usr/bin/qrexec-client
install -m 755 "$here/bin/nothing" /usr/local/bin/qvm-appmenus
# isolated, so that Python imports no other package
cat >/usr/local/bin/qubesd-query <<'END'
#!/bin/sh
exec python3 -I /usr/lib/python3/dist-packages/qubes/tools/qubesd_query.py "$@"
END
cat >/usr/local/bin/qvm-zfs <<'END'
#!/usr/bin/python3 -I
import sys

from qubes_storage_zfs.tools.main import main

sys.exit(main())
END
chmod 755 /usr/local/bin/qubesd-query /usr/local/bin/qvm-zfs

# qubes.tarwriter opens /dev/stdout, bash opens /dev/fd
ln -sfn /proc/self/fd /dev/fd
for name in 0:stdin 1:stdout 2:stderr; do
    ln -sfn "/proc/self/fd/${name%%:*}" "/dev/${name#*:}"
done
mkdir -p /var/log/qubes /etc/qubes/backup /run/person \
    /var/lib/qubes/{appvms,vm-templates,backup,vm-kernels/6.6.1}
chown user:qubes /run/qubes
chmod 2770 /run/qubes
chown user /run/person
for file in vmlinuz initramfs; do
    echo "$file" >"/var/lib/qubes/vm-kernels/6.6.1/$file"
done
truncate -s 1M /var/lib/qubes/vm-kernels/6.6.1/modules.img
# qvm-backup-restore unpacks here, and needs 1 GB
mkdir -p /root/QubesIncoming
mount -t tmpfs -o size=1200m tmpfs /root/QubesIncoming
echo 'Qubes release 4.3 (R4.3)' >/etc/qubes-release
